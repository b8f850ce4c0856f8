"""The Hugging Face hub: push. Everything else takes `user/repo` where it takes a path."""

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from lbm_lora.adapter import Adapter
from lbm_lora.api.options import Options
from lbm_lora.configs.push import PushConfig
from lbm_lora.hub import load_adapter
from lbm_lora.progress import SILENT, Progress
from lbm_lora.verbs.values import Images, LoraLike, image_files, path_of

if TYPE_CHECKING:
    from lbm_lora.workflows.push import PushResult

_PUSH = Options(PushConfig, hidden=("lora_path", "to", "images"))


@_PUSH.documented
def push(
    lora: LoraLike, to: str, *, images: Images | None = None, progress: Progress = SILENT, **options: Any
) -> "PushResult":
    """Publish a LoRA on the Hugging Face hub, in one commit: its file, the same for diffusers, and a model card.

    Args:
        lora: a path, a name on the hub, or an adapter.
        to: repository to publish it in, `user/repo` or `user/repo@branch`; made if it does not exist.
        images: pictures for the card, 12 at most.
        progress: a listener.

    Returns:
        The page, the commit and the files of the repository.

    Raises:
        HubError: the hub refuses the token or the commit, or cannot be reached.
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is uploaded then.
    """
    from lbm_lora.workflows import push as push_workflow

    with ExitStack() as stack:
        pictures = None if images is None else stack.enter_context(image_files(images))
        config = _PUSH.bind(
            "push", options, lora_path=path_of(lora, "lora"), to=to, images=None if pictures is None else str(pictures)
        )
        contents = push_workflow.planned(config, pictures)
        adapter = lora if isinstance(lora, Adapter) else load_adapter(lora)
        return push_workflow.pushed(config, adapter, contents, pictures, progress)
