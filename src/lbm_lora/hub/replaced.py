"""Files of a repository that a commit would replace: only those that lbm-lora wrote, unless the user says otherwise."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lbm_lora.adapter.metadata import EXPORT_KEY
from lbm_lora.errors import Option, OutputError
from lbm_lora.hub.card import is_unedited_card
from lbm_lora.hub.failures import hub_errors
from lbm_lora.hub.names import HubName
from lbm_lora.hub.publish import CARD
from lbm_lora.hub.repository import PATIENCE
from lbm_lora.ownership import MARK_KEY, PICTURES, is_ours
from lbm_lora.regular_file import file_digest

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def check_replaced(name: HubName, files: Mapping[str, Path], *, overwrite: bool = False) -> str | None:
    """Refuse a commit that would replace a file which lbm-lora did not write, or a model card that was edited.

    A repository or a branch that does not exist yet has nothing to lose: its files stay where the branch starts.

    Args:
        files: path in the repository -> local file, as for `publish`.
        overwrite: whether any file may be replaced that is there now.

    Returns:
        The commit that was looked at, for `publish`; None if there is none.

    Raises:
        OutputError: there is such a file.
        HubError: the hub cannot be reached, or does not give the file.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    api = HfApi()
    with hub_errors(f"{name} cannot be published on the Hugging Face hub", repo=name.repo, has_cache=False):
        try:
            info = api.model_info(name.repo, revision=name.revision, timeout=PATIENCE)
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return None
        there = {one.rfilename for one in info.siblings or ()}
        for path in () if overwrite else sorted(there & files.keys()):
            problem = _problem(api, name.repo, str(info.sha), path, files[path])
            if problem:
                raise OutputError(
                    f"{path} exists in {name}, and {problem}. Publish to another repository or branch, or use ",
                    Option("overwrite"),
                    " to replace it.",
                )
    return info.sha or None


def _problem(api: "HfApi", repo: str, commit: str, path: str, new: Path) -> str:
    """Return why a file of a commit may not be replaced; empty if it may."""
    if path.endswith(".safetensors"):
        return "" if _is_our_lora(api, repo, commit, path) else "it is not a LoRA that lbm-lora wrote"
    there = Path(api.hf_hub_download(repo, path, revision=commit))
    if path == CARD:
        return "" if is_unedited_card(there) else "lbm-lora did not write it, or it was edited"
    return "" if is_copy(new, there) else "it is another picture"


def _is_our_lora(api: "HfApi", repo: str, commit: str, path: str) -> bool:
    """Return whether a file on the hub is a LoRA of lbm-lora in any format, by its header alone.

    The same entries as `lbm_lora.ownership.is_lora` looks for in a local file.
    """
    from huggingface_hub.errors import SafetensorsParsingError

    try:
        found = api.parse_safetensors_file_metadata(repo, path, revision=commit, timeout=PATIENCE)
    except SafetensorsParsingError:
        return False
    header = found.metadata or {}
    return "lbm_lora_format" in header or EXPORT_KEY in header or header.get(MARK_KEY) == "LoRA"


def is_copy(picture: Path, path: Path) -> bool:
    """Return whether a file may be replaced by a picture: it has the same bytes, or both are ours, of one kind."""
    if any(is_ours(picture, kind) and is_ours(path, kind) for kind in PICTURES):
        return True
    with suppress(OSError):  # a link to nothing; whoever reads it says so
        return file_digest(picture) == file_digest(path)
    return False
