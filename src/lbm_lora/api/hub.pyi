"""Made by tools/write_api_stubs.py of the functions and their configs; not to be edited."""

from lbm_lora.api.values import Images
from lbm_lora.api.values import LoraLike
from lbm_lora.progress import Progress
from lbm_lora.workflows.push import PushResult
from pathlib import Path

def push(
    lora: LoraLike,
    to: str,
    *,
    images: Images | None = None,
    overwrite: bool = False,
    private: bool = False,
    base_model: str | None = None,
    license: str = 'cc-by-nc-4.0',
    message: str | None = None,
    save_to: Path | str | None = None,
    progress: Progress = ...,
) -> PushResult:
    """Publish a LoRA on the Hugging Face hub, in one commit: its file, the same for diffusers, and a model card.

    Args:
        lora: a path, a name on the hub, or an adapter.
        to: repository to publish it in, `user/repo` or `user/repo@branch`; made if it does not exist.
        images: pictures for the card, 12 at most.
        progress: a listener.
        overwrite: Replace existing files at the output paths, even if lbm-lora did not write them; inputs are never
            replaced.
        private: Make the repository private. An existing public one is refused.
        base_model: Model on the hub that the LoRA is for. Default: SDXL, from which the exact base is made, if the
            LoRA has its widths.
        license: License, by the hub's identifier, which the hub checks. LoRAs of LBM's published weights inherit
            the default.
        message: Message of the commit. Default: Upload NAME.
        save_to: Write the repository's files to this folder to look at them, and upload nothing.

    Returns:
        The page, the commit and the files of the repository.

    Raises:
        HubError: the hub refuses the token or the commit, or cannot be reached.
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is uploaded then.
    """
    ...
