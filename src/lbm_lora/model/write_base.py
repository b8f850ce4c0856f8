"""Write the exact base as `.safetensors` and `.ckpt` twins, tensor by tensor, in constant memory."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lbm_lora.checkpoint import SafetensorsWriter, TensorSpec, TorchWriter, dtype_name
from lbm_lora.errors import CheckpointError, Option, OutputError, listing, plural
from lbm_lora.file_plan import FilePlan
from lbm_lora.model.backbone import Backbone
from lbm_lora.model.base import BaseItem, apply_item, base_unet_config, plan_base
from lbm_lora.model.baseline import BASE_MARK, ORIGIN_KEY
from lbm_lora.model.config import LBMConfig, parse_config
from lbm_lora.model.constants import SDXL_VAE
from lbm_lora.model.resolve import CKPT_CONTAINERS, ckpt_entries, config_to_metadata, lbm_unet
from lbm_lora.ownership import BASE, MARK_KEY, is_base
from lbm_lora.parallel import ordered_map
from lbm_lora.progress import SILENT, Progress

_METADATA_ENTRIES = ("backbone_signature", "architecture", "torch_dtype", ORIGIN_KEY)
_SUFFIXES = (".ckpt", ".pth", ".pt", ".safetensors")
_NOTE = "The LPIPS network of training is left out: no LoRA changes it, and training loads its own."


@dataclass(frozen=True, kw_only=True)
class BaseFiles:
    """Result of `write_base`.

    Attributes:
        safetensors, ckpt: the twins.
        ledger: one item for every tensor of the base and every dropped one.
        config: configuration in both files.
        dtype: dtype of every tensor.
        notes: notes for the user, one sentence each.
    """

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
    """Return the base's configuration: LBM's keys, and the sections from the config.yaml, else from the backbone.

    Raises:
        ConfigError: the sections contradict LBM's keys.
    """
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
    """Return the (`.safetensors`, `.ckpt`) paths of a base from either of them.

    Raises:
        OutputError: the path has another suffix.
    """
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
        config: LBM's configuration, as read from config.yaml.
        save_path: `.ckpt` or `.safetensors`; the twin gets the same stem.
        source_config: the config.yaml as it was read, for the `.ckpt`.

    Raises:
        CheckpointError: the rule does not cover some tensors, or some are not finite in `dtype`.
        ConfigError: the configuration contradicts the backbone.
        OutputError: the path cannot be written, or is one of the backbone's files.
    """
    safetensors, ckpt = twin_paths(save_path)
    plan = FilePlan()
    plan.reads(*backbone.files)
    for output in (safetensors, ckpt):
        plan.writes(output, ours=is_base)
    plan.check_apart()  # what else may be replaced is for the caller to say
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
    source = backbone.vae if item.is_vae else backbone.unet
    return apply_item(item, source.read(item.source)).to(dtype)


def _entries(config: LBMConfig, dtype: torch.dtype, source_config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the documented entries of the `.ckpt` next to its tensors, of plain types."""
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
