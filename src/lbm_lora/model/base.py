"""The exact base: the weights from which an LBM's training starts, derived from its backbone by a rule, and written.

The rule, from the public training recipe: drop the added text and time embedding; where the LBM's denoiser
expects another number of input columns in `conv_in`, a class embedding or the keys and values of attention,
take the first columns, or append zeros; copy everything else, and the VAE, unchanged. Cropping changes no
value, so the order of cropping and casting does not matter. A tensor that the rule does not cover is an
error. It is written as `.safetensors` and `.ckpt` twins, tensor by tensor, in constant memory.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from lbm_lora.checkpoint import SafetensorsWriter, TensorSpec, TorchWriter, dtype_name
from lbm_lora.errors import CheckpointError, Option, OutputError, listing, plural
from lbm_lora.files import BASE, MARK_KEY, Outputs
from lbm_lora.model.backbone import Backbone
from lbm_lora.model.baseline import BASE_MARK, ORIGIN_KEY
from lbm_lora.model.config import LBMConfig, parse_config
from lbm_lora.model.constants import ITERATIONS_KEY, SDXL_VAE, VAE_PREFIX
from lbm_lora.model.names import checkpoint_shapes
from lbm_lora.model.resolve import CKPT_CONTAINERS, ckpt_entries, config_to_metadata, lbm_unet
from lbm_lora.naming import DENOISER_PREFIX
from lbm_lora.progress import SILENT, Progress
from lbm_lora.runtime import ordered_map

Action = Literal["copied", "cropped", "padded", "dropped", "added"]

_DROPPED = re.compile(r"add_embedding\..+")
_RESIZED = re.compile(r"conv_in\.weight|.+\.attn\d+\.to_[kv]\.weight|class_embedding\.linear_\d+\.(weight|bias)")
_METADATA_ENTRIES = ("backbone_signature", "architecture", "torch_dtype", ORIGIN_KEY)
_SUFFIXES = (".ckpt", ".pth", ".pt", ".safetensors")
_NOTE = "The LPIPS network of training is left out: no LoRA changes it, and training loads its own."


@dataclass(frozen=True)
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
        """Whether it is a tensor of the VAE: part of the result's JSON too."""
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

    Returns:
        One item for every tensor of the base, in diffusers' order, then one for every dropped tensor.
    """
    expected = checkpoint_shapes(config)
    found = {DENOISER_PREFIX + name: (name, spec) for name, spec in unet.items()}
    found |= {VAE_PREFIX + name: (name, spec) for name, spec in vae.items()}
    items: list[BaseItem] = []
    problems: list[str] = []
    for key, shape in expected.items():
        if key == ITERATIONS_KEY:
            items.append(BaseItem(key, "", "added", None, shape, "LBM's own counter, 0"))
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
            items.append(BaseItem(key, name, "dropped", spec.shape, None, "LBM has no added text and time embedding"))
        else:
            problems.append(f"{key} {spec.shape} has no place in LBM")
    if problems:
        raise CheckpointError(
            f"{where}: {len(problems)} tensors do not fit the rule that makes a base: "
            f"{listing(problems, limit=4)}. Does the configuration belong to this backbone?"
        )
    return tuple(items)


def _resize(key: str, name: str, have: tuple[int, ...], want: tuple[int, ...]) -> BaseItem | None:
    """Return the item of a tensor that is in both; None if the rule does not cover the difference in shape."""
    if have == want:
        return BaseItem(key, name, "copied", have, want, "same shape")
    axes = [axis for axis, (a, b) in enumerate(zip(have, want, strict=False)) if a != b]
    free = axes == [1] or name.startswith("class_embedding.")
    if not key.startswith(DENOISER_PREFIX) or not _RESIZED.fullmatch(name) or len(have) != len(want) or not free:
        return None
    (a, b) = have[axes[0]], want[axes[0]]
    if all(have[axis] > want[axis] for axis in axes):
        return BaseItem(key, name, "cropped", have, want, f"the first {b} of {a} input columns")
    if all(have[axis] < want[axis] for axis in axes):
        return BaseItem(key, name, "padded", have, want, f"zeros for {b - a} more inputs")
    return None


@dataclass(frozen=True, kw_only=True)
class BaseFiles:
    """Result of `write_base`."""

    safetensors: Path
    ckpt: Path
    ledger: tuple[BaseItem, ...]
    config: LBMConfig
    dtype: torch.dtype
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        """`<BaseFiles base.safetensors, base.ckpt: 1,676 tensors, bf16>`."""
        made = sum(count for action, count in self.counts.items() if action != "dropped")
        return f"<BaseFiles {self.safetensors}, {self.ckpt}: {plural(made, 'tensor')}, {dtype_name(self.dtype)}>"

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of tensors per action."""
        return dict(Counter(item.action for item in self.ledger))


def base_config(backbone: Backbone, config: LBMConfig) -> LBMConfig:
    """Return the base's configuration: LBM's keys, and the sections from the config.yaml, else from the backbone."""
    if backbone.unet_config is None or backbone.vae_config is None:
        unet, vae = lbm_unet(config), dict(SDXL_VAE)
    else:
        unet = base_unet_config(backbone.unet_config, config)
        vae = {key: value for key, value in backbone.vae_config.items() if not key.startswith("_")}
    changes = {"unet": config.unet or unet, "vae": config.vae or vae, "backbone_signature": backbone.name}
    return parse_config(config.model_dump() | changes, where=f"backbone {backbone.signature}")


def exactness_notes(backbone: Backbone, dtype: torch.dtype) -> tuple[str, ...]:
    """Return reasons why a base of `dtype` is not bit for bit the one that training started from, if any."""
    notes: list[str] = []
    lossy = sorted(dtype_name(d) for d in backbone.storage_dtypes if d.itemsize < 4 and d != dtype)
    if lossy:
        notes.append(
            f"The backbone's weights are stored in {' and '.join(lossy)}: the base is not exact. Full-precision files, "
            f"rounded once to {dtype_name(dtype)}, differ from it in about 6 % of the elements."
        )
    shift = (backbone.scheduler_config or {}).get("shift", 1.0)
    if shift != 1.0:
        notes.append(f"The backbone's scheduler has shift {shift}, but LBM's bridge and this package use 1.")
    return tuple(notes)


def twin_paths(save_path: Path) -> tuple[Path, Path]:
    """Return the (`.safetensors`, `.ckpt`) paths of a base from either of them."""
    if save_path.suffix not in _SUFFIXES:
        raise OutputError(
            Option("save_path"), f" must end in .ckpt or .safetensors (both are written), got {save_path}."
        )
    ckpt = save_path.with_suffix(".ckpt") if save_path.suffix == ".safetensors" else save_path
    return save_path.with_suffix(".safetensors"), ckpt


def write_base(
    backbone: Backbone,
    config: LBMConfig,
    save_path: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    source_config: Mapping[str, Any] | None = None,
    progress: Progress = SILENT,
) -> BaseFiles:
    """Write the base of a backbone.

    Args:
        save_path: `.ckpt` or `.safetensors`; the twin gets the same stem.
    """
    safetensors, ckpt = twin_paths(save_path)
    # what may be replaced is for the caller to say
    Outputs(overwrite=True).reads(*backbone.files).writes(safetensors).writes(ckpt).check()
    whole = base_config(backbone, config)
    ledger = plan_base(backbone.unet.specs, backbone.vae.specs, whole, where=f"backbone {backbone.signature}")
    kept = [(item, item.to_shape) for item in ledger if item.to_shape is not None]
    specs = {item.key: TensorSpec(dtype=dtype, shape=shape) for item, shape in kept}
    entries = _entries(whole, dtype, source_config)
    metadata = {
        "format": "pt",
        MARK_KEY: BASE,
        **config_to_metadata(whole),
        **{k: str(entries[k]) for k in _METADATA_ENTRIES},
    }
    progress.start(len(kept), "writing the base")
    with (
        SafetensorsWriter(safetensors, specs, metadata=metadata) as first,
        TorchWriter(ckpt, specs, kind=BASE, extra=entries, containers=CKPT_CONTAINERS) as second,
    ):
        broken: list[str] = []
        items = [item for item, _ in kept]
        for item, tensor in zip(items, ordered_map(lambda item: _make(backbone, item, dtype), items), strict=True):
            if not torch.isfinite(tensor.sum(dtype=torch.float32)):
                broken.append(item.key)
            first.write(item.key, tensor)
            second.write(item.key, tensor)
            progress.advance()
        if broken:
            raise CheckpointError(
                f"backbone {backbone.signature}: {len(broken)} tensors are not finite in {dtype_name(dtype)}: "
                f"{listing(broken)}. Download the files again, or choose another ",
                Option("torch_dtype"),
                ".",
            )
    notes = exactness_notes(backbone, dtype)
    return BaseFiles(safetensors=safetensors, ckpt=ckpt, ledger=ledger, config=whole, dtype=dtype, notes=notes)


def _make(backbone: Backbone, item: BaseItem, dtype: torch.dtype) -> torch.Tensor:
    if item.action == "added":
        return torch.zeros((), dtype=dtype)
    network = backbone.vae if item.is_vae else backbone.unet
    tensor = network.read(item.source)
    for axis, size in enumerate(item.to_shape or ()):
        have = tensor.shape[axis]
        if size < have:
            tensor = tensor.narrow(axis, 0, size)
        elif size > have:
            zeros = tensor.new_zeros(*tensor.shape[:axis], size - have, *tensor.shape[axis + 1 :])
            tensor = torch.cat((tensor, zeros), dim=axis)
    return tensor.to(dtype)


def _entries(config: LBMConfig, dtype: torch.dtype, source_config: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        **ckpt_entries(config.model_dump(mode="json")),
        "architecture": "LBM",
        "torch_dtype": str(dtype),
        "source_config": json.loads(json.dumps(dict(source_config or {}), default=str)),
        ORIGIN_KEY: BASE_MARK,
        "created_from": "inference_config_initialization",
        "lpips_excluded": True,
        "note": _NOTE,
    }
