"""Publish files in a repository of the Hugging Face hub, in one commit."""

import json
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lbm_lora.errors import ConfigError, Option, OutputError, listing
from lbm_lora.hub.card import check_card
from lbm_lora.hub.failures import hub_errors
from lbm_lora.hub.names import HubName, hub_name
from lbm_lora.hub.repository import PATIENCE
from lbm_lora.progress import SILENT, Progress

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class Commit:
    """Published commit.

    Attributes:
        id: its hash.
        url: page of the repository, or of its branch.
    """

    id: str
    url: str


def destination(to: str) -> HubName:
    """Return the repository that `user/repo` or `user/repo@branch` names.

    Raises:
        ConfigError: it names something else.
    """
    try:
        name = hub_name(f"hf://{to.removeprefix('hf://')}")
    except ConfigError:
        name = None
    if name is None or name.file:
        raise ConfigError(Option("to"), f" must be user/repo or user/repo@branch, got {to}.")
    return name


def publish(
    name: HubName,
    files: Mapping[str, Path],
    *,
    private: bool,
    message: str,
    on: str | None = None,
    progress: Progress = SILENT,
) -> Commit:
    """Commit files to a repository, made if it does not exist. Nothing is made or uploaded if the card is not valid.

    Args:
        files: path in the repository -> local file; README.md is the card.
        private: a repository that is made is private; an existing one must be.
        on: the newest commit of the branch: the hub refuses the files if there is a newer one by now. None: the one
            that a new repository or branch begins with.

    Raises:
        ConfigError: the card is not valid, or the repository is public and should be private.
        OutputError: somebody else has made the repository or the branch meanwhile.
        HubError: the hub refuses the token or the commit, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    check_card(files[CARD].read_text(encoding="utf-8"))
    with hub_errors(f"{name} cannot be published on the Hugging Face hub", repo=name.repo, has_cache=False):
        _check_at_hub(files[CARD].read_text(encoding="utf-8"))
        api = HfApi()
        _check_visibility(api, name.repo, private=private)
        api.create_repo(name.repo, private=private, exist_ok=True)
        if name.revision is not None:
            api.create_branch(name.repo, branch=name.revision, exist_ok=True)
        on = on or _first_commit(api, name, files)
        progress.start(0, f"uploading to {name}")
        added = [CommitOperationAdd(path, file) for path, file in files.items()]
        with _without_bars():
            done = api.create_commit(name.repo, added, commit_message=message, revision=name.revision, parent_commit=on)
    tree = f"/tree/{name.revision}" if name.revision else ""
    return Commit(id=done.oid, url=f"{api.endpoint}/{name.repo}{tree}")


def _first_commit(api: "HfApi", name: HubName, files: Iterable[str]) -> str | None:
    """Return the commit that a new repository or branch begins with.

    Raises:
        OutputError: somebody else has made it meanwhile, with files that would be replaced.
    """
    info = api.model_info(name.repo, revision=name.revision, timeout=PATIENCE)
    late = sorted({one.rfilename for one in info.siblings or ()} & set(files))
    # a branch of ours begins with the files of the main one, where they stay
    if late and (name.revision is None or info.sha != api.model_info(name.repo, timeout=PATIENCE).sha):
        raise OutputError(f"{name} was made while this command ran, with {listing(late)}. Run the command again.")
    return info.sha


@contextmanager
def _without_bars() -> Generator[None]:
    """Switch the client's bars off, one for each file: the listener shows the phase. The user's own setting stays."""
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _check_at_hub(card: str) -> None:
    """Let the hub check the card, which knows the licenses and the names of models."""
    from huggingface_hub import ModelCard

    try:
        ModelCard(card).validate(repo_type="model")
    except ValueError as error:
        if hasattr(error, "response"):  # an answer that is not about the card
            raise
        raise ConfigError(
            f"the hub refuses the model card: {_messages(str(error))}. Check ",
            Option("license"),
            " and ",
            Option("base_model"),
            ".",
        ) from None


def _messages(answer: str) -> str:
    """Return the sentences in the hub's answer about a card: JSON with a list of errors, or plain text."""
    try:
        text = "; ".join(str(one["message"]) for one in json.loads(answer)["errors"])
    except (ValueError, KeyError, TypeError):
        text = answer
    return " ".join(text.split()).rstrip(".")


def _check_visibility(api: "HfApi", repo: str, *, private: bool) -> None:
    """Refuse to publish in a public repository what should be private."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.model_info(repo)
    except RepositoryNotFoundError:
        return
    if private and not info.private:
        raise ConfigError(
            f"{repo} exists and is public, so the LoRA would be, too. Make it private in its settings, or leave out ",
            Option("private"),
            ".",
        )
