"""Local files for names on the Hugging Face hub: the one place where a path of an option becomes one on this machine.

The client of the hub is imported when it is used: most runs do without it. Without a network, what the client's cache
has of a repository stands for the repository.
"""

import glob
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from torch import Tensor

from lbm_lora import adapter, checkpoint
from lbm_lora.adapter import Adapter
from lbm_lora.adapter.adapter_file import NAMES, PEFT_CONFIG
from lbm_lora.checkpoint import Checkpoint, CheckpointLike, Component
from lbm_lora.choices import AlphaIs
from lbm_lora.errors import HubError, LbmLoraError, listing
from lbm_lora.hub.names import HubName, hub_name
from lbm_lora.progress import SILENT, Progress, warn

PATIENCE = 30.0
"""Seconds to wait for the hub's answer about a repository; for a part of a file the client's own limits hold."""

_INDEX = ".safetensors.index.json"
_LOGIN = "run `hf auth login`, or set HF_TOKEN"


def load_adapter(
    source: Path | str | Mapping[str, Tensor], alpha_is: AlphaIs = "auto", *, base: Component | None = None
) -> Adapter:
    """Read a LoRA of any format: a file, `user/repo` on the Hugging Face hub, or a state dict of its tensors.

    The tensors of a file stay there until they are used.

    Args:
        source: the path of a file, a name on the hub (`user/repo`, `user/repo/file.safetensors`, with `@revision`), or
            tensors by key.
        alpha_is: meaning of alpha in the file: `rank` ignores it (scaling 1), `file` uses it, `auto` is `rank` for
            files of the earlier implementation.
        base: the component that it is meant for; needed only by files with values that replace the base's.

    """
    local = source if isinstance(source, Mapping) else local_lora(source)
    return adapter.load_adapter(local, alpha_is, base=base)


def open_checkpoint(source: CheckpointLike, *, label: str = "state dict") -> Checkpoint:
    """Open a `.safetensors` file, its index of shards, a `.ckpt`, or a folder or repository that holds one of them.

    An open checkpoint gives another view of it, which can be closed by itself; a state dict is read from memory.

    Args:
        source: a path, a name on the Hugging Face hub, an open checkpoint, or tensors by key.
        label: what messages call a state dict.
    """
    local = local_checkpoint(source) if isinstance(source, str | Path) else source
    return checkpoint.open_checkpoint(local, label=label)


def local_lora(path: Path | str, progress: Progress = SILENT) -> Path:
    """Return the local file of a LoRA: the path itself, or that of a repository on the hub.

    Of a repository, or a folder in one, it is the only `.safetensors` file, else the only native LoRA, since an export
    may hold less; else the file that PEFT or diffusers looks for.
    """
    name = hub_name(path)
    if name is None:
        return Path(path)
    repository = open_repository(name)
    file = name.file if name.file in repository.files else _lora_of(repository, PurePosixPath(name.file))
    config = str(PurePosixPath(file).with_name(PEFT_CONFIG))
    return repository.fetch([file, *([config] if config in repository.files else [])], progress) / file


def local_checkpoint(path: Path | str, progress: Progress = SILENT) -> Path:
    """Return the local file or folder of a checkpoint: the path itself, or that of a repository on the hub.

    Of a repository, or a folder in one, it is the index with its shards, else the only `.safetensors`, else the only
    `.ckpt`. The `.yaml` files next to it are fetched too.
    """
    name = hub_name(path)
    if name is None:
        return Path(path)
    repository = open_repository(name)
    file = name.file if name.file in repository.files else _checkpoint_of(repository, PurePosixPath(name.file))
    beside = [one for one in repository.files_in(PurePosixPath(file).parent) if one.endswith(".yaml")]
    stem = file.removesuffix(_INDEX)
    shards = [one for one in repository.files if one.startswith(f"{stem}-") and one.endswith(".safetensors")]
    return repository.fetch([file, *(shards if file != stem else []), *beside], progress) / file


def _lora_of(repository: "Repository", folder: PurePosixPath) -> str:
    there = repository.files_in(folder)
    files = [file for file in there if file.endswith(".safetensors")]
    if len(files) == 1:
        return files[0]
    ours = [file for file in files if "lbm_lora_format" in repository.header(file)]
    known = [str(folder / name) for name in NAMES if str(folder / name) in there]
    if len(ours) == 1 or (known and not ours):
        return (ours or known)[0]
    raise repository.not_one("LoRAs", ours or files, ".safetensors file")


def _checkpoint_of(repository: "Repository", folder: PurePosixPath) -> str:
    there = repository.files_in(folder)
    for suffix in (_INDEX, ".safetensors", ".ckpt"):
        found = [file for file in there if file.endswith(suffix)]
        if len(found) == 1:
            return found[0]
        if found:
            raise repository.not_one("checkpoints", found, "")
    raise repository.not_one("checkpoints", [], ".safetensors or .ckpt file")


@dataclass(frozen=True)
class Repository:
    """A repository at a commit; `cached`: its local folder, if it was found in the cache and not on the hub."""

    name: HubName
    commit: str
    files: tuple[str, ...]
    cached: Path | None = None

    def files_in(self, folder: PurePosixPath) -> list[str]:
        """Return the files right in a folder."""
        found = [file for file in self.files if PurePosixPath(file).parent == folder]
        if found or not folder.name:
            return found
        near = get_close_matches(str(folder), self.files, n=1, cutoff=0.5)
        hint = f"Did you mean {self.name.repo}/{near[0]}?" if near else f"It holds {listing(self.files) or 'no files'}."
        at = f" at {self.name.revision}" if self.name.revision else ""
        raise HubError(f"{self.name.repo} on the Hugging Face hub has no file {folder}{at}. {hint}")

    def header(self, file: str) -> Mapping[str, str]:
        """Return the strings in a `.safetensors` header, without fetching the tensors."""
        if self.cached is not None:
            with checkpoint.open_checkpoint(self.cached / file) as opened:
                return opened.metadata
        from huggingface_hub import HfApi

        with _fetching(self.name):
            api = HfApi()
            found = api.parse_safetensors_file_metadata(self.name.repo, file, revision=self.commit, timeout=PATIENCE)
        return found.metadata or {}

    def fetch(self, files: Collection[str], progress: Progress = SILENT) -> Path:
        """Return the folder in the cache that has these files of the repository, fetched if they are not there."""
        if self.cached is not None:
            return self.cached
        from huggingface_hub import snapshot_download

        progress.start(0, f"fetching {self.name}")
        with _fetching(self.name):
            exactly = [glob.escape(file) for file in files]
            return Path(snapshot_download(self.name.repo, revision=self.commit, allow_patterns=exactly))

    def not_one(self, what: str, files: Sequence[str], kind: str) -> HubError:
        """Return the error for several files, or none of a kind, where one is wanted."""
        repo = f"{self.name.repo} on the Hugging Face hub"
        if files:
            example = HubName(self.name.repo, files[0], self.name.revision)
            return HubError(f"{repo} has several {what}: {listing(files)}. Name one: {example}.")
        return HubError(f"{repo} has no {kind}. It holds {listing(self.files) or 'no files'}.")


def open_repository(name: HubName) -> Repository:
    """Look a repository up on the hub; if there is no network, in the cache."""
    from huggingface_hub import HfApi

    with _fetching(name):
        try:
            info = HfApi().model_info(name.repo, revision=name.revision, timeout=PATIENCE)
            return Repository(name, str(info.sha), tuple(sorted(one.rfilename for one in info.siblings or ())))
        except Exception as error:
            status = _status(error)
            is_absent = _is_offline(error) or (_is_connection(error) and status is None) or (status or 0) >= 500
            found = _in_cache(name) if is_absent else None
            if found is None:
                raise
    warn(
        f"{name}: the Hugging Face hub cannot be reached. What was fetched earlier is used, of commit "
        f"{found.commit[:7]}; the repository may have more."
    )
    return found


def _in_cache(name: HubName) -> Repository | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        kept = snapshot_download(name.repo, revision=name.revision, local_files_only=True, allow_patterns=[])
    except LocalEntryNotFoundError:
        return None
    folder = Path(kept)
    files = tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))
    return Repository(name, folder.name, files, folder)


@contextmanager
def hub_errors(doing: str, repo: str, *, has_cache: bool = True) -> Generator[None]:
    """Turn every error of the hub's client within a `with` block into one of ours, which begins with what failed."""
    try:
        yield
    except LbmLoraError:
        raise
    except Exception as error:  # the client raises the errors of several HTTP libraries, and plain ones
        raise HubError(f"{doing}: {_reason(error, repo, has_cache=has_cache)}") from error


def _fetching(name: HubName) -> AbstractContextManager[None]:
    return hub_errors(f"{name} is not a local path, and cannot be fetched from the Hugging Face hub", name.repo)


def _reason(error: Exception, repo: str, *, has_cache: bool) -> str:
    """Return why a request failed, as a sentence with what to do."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    status, said = _status(error), _said(error)
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


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _is_offline(error: Exception) -> bool:
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    return any(isinstance(one, OfflineModeIsEnabled) for one in _causes(error)) or (
        constants.HF_HUB_OFFLINE and isinstance(error, LocalEntryNotFoundError)
    )


def _is_connection(error: Exception) -> bool:
    """Whether the connection failed. The clients' libraries (requests, httpx) share names, and no base class."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    kinds = {kind.__name__ for one in _causes(error) for kind in type(one).__mro__}
    named = {"TransportError", "ConnectionError", "Timeout", "ChunkedEncodingError", "ProxyError"}
    return isinstance(error, LocalEntryNotFoundError) or not kinds.isdisjoint(named)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _said(error: Exception) -> str:
    """Return what the hub, or the innermost error, says."""
    root = list(_causes(error))[-1]
    text = str(getattr(error, "server_message", None) or root or error) or type(root).__name__
    return " ".join(text.split()).rstrip(".")
