"""What is said when the Hugging Face hub does not give, or take, what it should: one line, and what to do."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from lbm_lora.errors import HubError, LbmLoraError

_LOGIN = "run `hf auth login`, or set HF_TOKEN"


@contextmanager
def hub_errors(doing: str, *, repo: str, has_cache: bool = True) -> Generator[None]:
    """Turn every error of the hub's client within a `with` block into one of ours.

    Args:
        doing: what failed, as in `user/repo cannot be fetched from the Hugging Face hub`.
        has_cache: whether the cache could have given it without the network.

    Raises:
        HubError: the client raised anything.
    """
    try:
        yield
    except LbmLoraError:
        raise
    except Exception as error:  # the client raises the errors of several HTTP libraries, and plain ones
        raise HubError(f"{doing}: {reason(error, repo, has_cache=has_cache)}") from error


def reason(error: BaseException, repo: str, *, has_cache: bool = True) -> str:
    """Return why a request failed, as a sentence with what to do."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    status = getattr(getattr(error, "response", None), "status_code", None)
    said = _said(error)
    if isinstance(error, hub.GatedRepoError):
        return f"its owner must grant access. Accept the conditions on {constants.ENDPOINT}/{repo}, then {_LOGIN}."
    if isinstance(error, hub.RevisionNotFoundError):
        return "it has no such revision. Give a branch, a tag or a commit after the @."
    if isinstance(error, hub.RepositoryNotFoundError):
        return f"there is no such repository, or it is private. Check the name; for a private one, {_LOGIN}."
    if status == 401 or isinstance(error, hub.LocalTokenNotFoundError):
        return f"the token is missing, or not valid. Make one on {constants.ENDPOINT}/settings/tokens, and {_LOGIN}."
    if status == 403:
        return f"the token does not permit it ({said}). Use one that may write to {repo.partition('/')[0]}: {_LOGIN}."
    if status == 412:
        return "somebody has changed the repository meanwhile, and nothing was replaced. Run the command again."
    if _is_offline(error):
        return f"{'it is not in the cache, and ' if has_cache else ''}HF_HUB_OFFLINE forbids the network. Unset it."
    if status is not None:
        return f"the hub answered {status}: {said}."
    if _is_connection(error):
        return f"there is no connection to {constants.ENDPOINT}, or it broke ({said}). Try again."
    return f"{said}."


def is_absent_network(error: BaseException) -> bool:
    """Whether the network, not the answer of the hub, is what is missing: the cache may still have the files."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return _is_offline(error) or (_is_connection(error) and status is None) or (status or 0) >= 500


def _is_offline(error: BaseException) -> bool:
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    return any(isinstance(one, OfflineModeIsEnabled) for one in _causes(error)) or (
        constants.HF_HUB_OFFLINE and isinstance(error, LocalEntryNotFoundError)
    )


def _is_connection(error: BaseException) -> bool:
    """Whether the connection failed. The clients' libraries (requests, httpx) share names, and no base class."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    kinds = [kind for one in _causes(error) for kind in type(one).__mro__]
    named = {"TransportError", "ConnectionError", "Timeout", "ChunkedEncodingError", "ProxyError"}
    return isinstance(error, LocalEntryNotFoundError) or any(kind.__name__ in named for kind in kinds)


def _causes(error: BaseException | None) -> Generator[BaseException]:
    """Yield an error and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _said(error: BaseException) -> str:
    """Return what the hub, or the innermost error, says: the last line that is not a hint of the client."""
    message: Any = getattr(error, "server_message", None)
    root = list(_causes(error))[-1]
    text = str(message or root or error) or type(root).__name__
    return " ".join(text.split()).rstrip(".")
