"""Publish files in a repository of the Hugging Face hub, in one commit."""

import json
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lbm_lora.errors import ConfigError, Option, OutputError
from lbm_lora.files import file_digest, is_ours
from lbm_lora.hub.card import check_card
from lbm_lora.hub.fetch import PATIENCE, hub_errors
from lbm_lora.hub.names import HubName, hub_name
from lbm_lora.progress import SILENT, Progress

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD = "README.md"
_WHY = {".safetensors": "it is not a LoRA that lbm-lora wrote", ".md": "lbm-lora did not write it"}


@dataclass(frozen=True, kw_only=True)
class Commit:
    """Published commit: its hash, and the page of the repository or of its branch."""

    id: str
    url: str


def destination(to: str) -> HubName:
    """Return the repository that `user/repo` or `user/repo@branch` names."""
    try:
        name = hub_name(f"hf://{to.removeprefix('hf://')}")
    except ConfigError:
        name = None
    if name is None or name.file:
        raise ConfigError(Option("to"), f" must be user/repo or user/repo@branch, got {to}.")
    return name


def check_replaced(name: HubName, files: Mapping[str, Path], *, overwrite: bool = False) -> str | None:
    """Refuse a commit that would replace a file which lbm-lora did not write, unless it has the same bytes.

    Return the commit that was looked at, for `publish`; None if there is none.

    Args:
        files: path in the repository -> local file.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    api = HfApi()
    with _publishing(name):
        try:
            info = api.model_info(name.repo, revision=name.revision, timeout=PATIENCE)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return None
        there = {one.rfilename for one in info.siblings or ()}
        for path in () if overwrite else sorted(there & files.keys()):
            if not _is_replaceable(api, name.repo, str(info.sha), path, files[path]):
                raise OutputError(
                    f"{path} exists in {name}, and {_WHY.get(Path(path).suffix, 'it is another picture')}. Publish to "
                    "another repository or branch, or use ",
                    Option("overwrite"),
                    " to replace it.",
                )
    return info.sha or None


def _is_replaceable(api: "HfApi", repo: str, commit: str, path: str, new: Path) -> bool:
    """Return whether a file is ours, by its header alone if it has one, or the same as a new one."""
    from huggingface_hub.errors import SafetensorsParsingError

    if path.endswith(".safetensors"):
        try:
            found = api.parse_safetensors_file_metadata(repo, path, revision=commit, timeout=PATIENCE)
        except SafetensorsParsingError:
            return False
        return any(key.startswith("lbm_lora_") for key in found.metadata or {})
    return is_copy(new, Path(api.hf_hub_download(repo, path, revision=commit)))


def is_copy(file: Path, path: Path) -> bool:
    """Return whether a file may be replaced by another: it is ours, or has the same bytes."""
    try:
        return is_ours(path) or file_digest(file) == file_digest(path)
    except OSError:  # a link to nothing; whoever reads it says so
        return False


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
        on: the newest commit of the branch: the hub refuses the files if there is a newer one by now.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    card = files[CARD].read_text(encoding="utf-8")
    check_card(card)
    api = HfApi()
    with _publishing(name):
        _check_at_hub(card)
        try:
            is_public = not api.model_info(name.repo).private
        except RepositoryNotFoundError:
            is_public = False
        if private and is_public:
            raise ConfigError(
                f"{name.repo} exists and is public, so the LoRA would be, too. Make it private in its settings, or "
                "leave out ",
                Option("private"),
                ".",
            )
        api.create_repo(name.repo, private=private, exist_ok=True)
        if name.revision is not None:
            api.create_branch(name.repo, branch=name.revision, exist_ok=True)
        on = on or api.model_info(name.repo, revision=name.revision, timeout=PATIENCE).sha
        progress.start(0, f"uploading to {name}")
        added = [CommitOperationAdd(path, file) for path, file in files.items()]
        with _without_bars():
            done = api.create_commit(name.repo, added, commit_message=message, revision=name.revision, parent_commit=on)
    tree = f"/tree/{name.revision}" if name.revision else ""
    return Commit(id=done.oid, url=f"{api.endpoint}/{name.repo}{tree}")


def _publishing(name: HubName) -> AbstractContextManager[None]:
    return hub_errors(f"{name} cannot be published on the Hugging Face hub", name.repo, has_cache=False)


@contextmanager
def _without_bars() -> Generator[None]:
    """Switch the client's bars off, one for each file: the listener shows the phase. The user's own setting stays."""
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    is_ours = constants.HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled()
    if is_ours:
        disable_progress_bars()
    try:
        yield
    finally:
        if is_ours:
            enable_progress_bars()


def _check_at_hub(card: str) -> None:
    """Let the hub check the card, which knows the licenses and the names of models."""
    from huggingface_hub import ModelCard

    try:
        ModelCard(card).validate(repo_type="model")
    except ValueError as error:
        if hasattr(error, "response"):  # an answer that is not about the card
            raise
        try:
            text = "; ".join(str(one["message"]) for one in json.loads(str(error))["errors"])
        except (ValueError, KeyError, TypeError):
            text = str(error)
        raise ConfigError(
            f"the hub refuses the model card: {' '.join(text.split()).rstrip('.')}. Check ",
            Option("license"),
            " and ",
            Option("base_model"),
            ".",
        ) from None
