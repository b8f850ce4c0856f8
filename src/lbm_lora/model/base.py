"""The exact base: the weights from which an LBM's training starts, derived from its backbone by a rule.

The rule, from the public training recipe: drop the added text and time embedding; where the LBM's denoiser
expects another number of input columns in `conv_in`, a class embedding or the keys and values of attention,
take the first columns, or append zeros; copy everything else, and the VAE, unchanged. Cropping changes no
value, so the order of cropping and casting does not matter. A tensor that the rule does not cover is an
error.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from lbm_lora.checkpoint import TensorSpec
from lbm_lora.errors import CheckpointError, listing
from lbm_lora.model.config import LBMConfig
from lbm_lora.model.constants import ITERATIONS_KEY, VAE_PREFIX
from lbm_lora.model.names import checkpoint_shapes
from lbm_lora.naming import DENOISER_PREFIX

Action = Literal["copied", "cropped", "padded", "dropped", "added"]

_DROPPED = re.compile(r"add_embedding\..+")
_RESIZED = re.compile(r"conv_in\.weight|.+\.attn\d+\.to_[kv]\.weight|class_embedding\.linear_\d+\.(weight|bias)")


@dataclass(frozen=True, kw_only=True)
class BaseItem:
    """What becomes of one tensor: a row of the base's ledger.

    Attributes:
        key: key in the base; for a dropped tensor, the key that it would have had.
        source: the tensor's name in the backbone's network; empty for an added tensor.
        from_shape, to_shape: shapes in the backbone and in the base; None where the tensor does not exist.
    """

    key: str
    source: str
    action: Action
    from_shape: tuple[int, ...] | None
    to_shape: tuple[int, ...] | None
    reason: str

    @property
    def is_vae(self) -> bool:
        return self.key.startswith(VAE_PREFIX)


def base_unet_config(backbone: Mapping[str, Any], config: LBMConfig) -> dict[str, Any]:
    """Derive the denoiser's configuration from the backbone's: no added embedding, attn2 as wide as its block."""
    kept = {key: value for key, value in backbone.items() if not key.startswith("_")}
    return kept | {
        "in_channels": config.unet_input_channels,
        "out_channels": config.vae_num_channels,
        "cross_attention_dim": list(kept["block_out_channels"]),
        "addition_embed_type": None,
        "addition_time_embed_dim": None,
        "projection_class_embeddings_input_dim": None,
    }


def plan_base(
    unet: Mapping[str, TensorSpec], vae: Mapping[str, TensorSpec], config: LBMConfig, *, where: object
) -> tuple[BaseItem, ...]:
    """Decide what becomes of every tensor, from names and shapes alone.

    Args:
        unet, vae: the backbone's tensors under diffusers' names.
        config: the base's configuration, with both sections.
        where: the backbone, for error messages.

    Returns:
        One item for every tensor of the base, in diffusers' order, then one for every dropped tensor.

    Raises:
        CheckpointError: the rule does not cover some tensors; gives the reason for each.
    """
    expected = checkpoint_shapes(config)
    found = {DENOISER_PREFIX + name: (name, spec) for name, spec in unet.items()}
    found |= {VAE_PREFIX + name: (name, spec) for name, spec in vae.items()}
    items: list[BaseItem] = []
    problems: list[str] = []
    for key, shape in expected.items():
        if key == ITERATIONS_KEY:
            items.append(_item(key, "", "added", None, shape, "LBM's own counter, 0"))
        elif key not in found:
            problems.append(f"{key} is missing")
        else:
            name, spec = found[key]
            item = _resize(key, name, spec.shape, shape)
            if item is None:
                problems.append(f"{key} is {spec.shape}, but {shape} in LBM")
            else:
                items.append(item)
    for key, (name, spec) in found.items():
        if key in expected:
            continue
        if key.startswith(DENOISER_PREFIX) and _DROPPED.fullmatch(name):
            items.append(_item(key, name, "dropped", spec.shape, None, "LBM has no added text and time embedding"))
        else:
            problems.append(f"{key} {spec.shape} has no place in LBM")
    if problems:
        raise CheckpointError(
            f"{where}: {len(problems)} tensors do not fit the rule that makes a base: "
            f"{listing(problems, limit=4)}. Does the configuration belong to this backbone?"
        )
    return tuple(items)


def apply_item(item: BaseItem, tensor: torch.Tensor) -> torch.Tensor:
    """Return the base's tensor for an item: a view of the given tensor, or a copy with zeros appended."""
    if item.to_shape is None:
        raise AssertionError(f"{item.key} is dropped and has no tensor")
    for axis, size in enumerate(item.to_shape):
        have = tensor.shape[axis]
        if size < have:
            tensor = tensor.narrow(axis, 0, size)
        elif size > have:
            zeros = tensor.new_zeros(*tensor.shape[:axis], size - have, *tensor.shape[axis + 1 :])
            tensor = torch.cat((tensor, zeros), dim=axis)
    return tensor


def _resize(key: str, name: str, have: tuple[int, ...], want: tuple[int, ...]) -> BaseItem | None:
    """Return the item of a tensor that is in both; None if the rule does not cover the difference in shape."""
    if have == want:
        return _item(key, name, "copied", have, want, "same shape")
    axes = [axis for axis, (a, b) in enumerate(zip(have, want, strict=False)) if a != b]
    free = axes == [1] or name.startswith("class_embedding.")
    if not key.startswith(DENOISER_PREFIX) or not _RESIZED.fullmatch(name) or len(have) != len(want) or not free:
        return None
    (a, b) = have[axes[0]], want[axes[0]]
    if all(have[axis] > want[axis] for axis in axes):
        return _item(key, name, "cropped", have, want, f"the first {b} of {a} input columns")
    if all(have[axis] < want[axis] for axis in axes):
        return _item(key, name, "padded", have, want, f"zeros for {b - a} more inputs")
    return None


def _item(
    key: str,
    source: str,
    action: Action,
    have: tuple[int, ...] | None,
    want: tuple[int, ...] | None,
    reason: str,
) -> BaseItem:
    return BaseItem(key=key, source=source, action=action, from_shape=have, to_shape=want, reason=reason)
