"""Checkpoints and LoRAs by path or by name on the hub: what callers of Python functions give."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lbm_lora import adapter, checkpoint
from lbm_lora.adapter import Adapter
from lbm_lora.checkpoint import Checkpoint, CheckpointLike, Component
from lbm_lora.configs.values import AlphaIs
from lbm_lora.hub.resolve import local_checkpoint, local_lora


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

    Raises:
        HubError: it cannot be fetched from the hub.
        CheckpointError: the file cannot be read.
        AdapterError: its keys are not adapter keys, or do not belong together, or need the base.
    """
    local = source if isinstance(source, Mapping) else local_lora(source)
    return adapter.load_adapter(local, alpha_is, base=base)


def open_checkpoint(source: CheckpointLike, *, label: str = "state dict") -> Checkpoint:
    """Open a `.safetensors` file, its index of shards, a `.ckpt`, or a folder or repository that holds one of them.

    An open checkpoint gives another view of it, which can be closed by itself; a state dict is read from memory.

    Args:
        source: a path, a name on the Hugging Face hub, an open checkpoint, or tensors by key.
        label: what messages call a state dict.

    Raises:
        HubError: it cannot be fetched from the hub.
        CheckpointError: the file does not exist, or cannot be read as a checkpoint.
    """
    local = local_checkpoint(source) if isinstance(source, str | Path) else source
    return checkpoint.open_checkpoint(local, label=label)
