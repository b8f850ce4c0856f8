"""Translate WebDataset shards with an LBM checkpoint and LoRAs, by one process or several: `infer --source_shards`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

from lbm_lora.adapter import LoraScale
from lbm_lora.adapter.adapter_file import lora_digest
from lbm_lora.apply import AppliedAdapter
from lbm_lora.checkpoint import Checkpoint, dtype_name, dtype_of, fingerprint, open_checkpoint
from lbm_lora.configs.infer_shards import InferShardsConfig
from lbm_lora.errors import ConfigError, Option, need_packages
from lbm_lora.files import Outputs
from lbm_lora.hub import localized
from lbm_lora.imaging.buckets import warn_of_size
from lbm_lora.inference.translate import put_in, read_adapters, translate_image, translate_settings
from lbm_lora.missing_path import home_path
from lbm_lora.model.build import refuse_conditioning
from lbm_lora.model.config import LBMConfig
from lbm_lora.model.constants import VAE_PREFIX
from lbm_lora.model.device import resolve_device
from lbm_lora.model.make_base import ensure_base, planned_missing
from lbm_lora.model.pipeline import LBMPipeline
from lbm_lora.model.resolve import resolve_config
from lbm_lora.model.schedule import check_step_count, step_counts
from lbm_lora.progress import SILENT, Progress
from lbm_lora.shards import SHARD_PACKAGES
from lbm_lora.shards.samples import Skipped

_PACKAGES = ("lightning", *SHARD_PACKAGES)


@dataclass(frozen=True, kw_only=True)
class InferShardsResult:
    """Counts of shards and images, over all processes."""

    folder: Path
    """Folder of the results: one shard per source shard, of the same name."""
    written: int
    """Shards written by this run."""
    present: int
    """Shards written by earlier runs."""
    images: int
    """Images written by this run."""
    skipped: tuple[Skipped, ...]
    """Unusable samples in all shards written so far."""
    stopped_by: str
    """The signal that stopped the run early, else empty."""
    adapters: tuple[AppliedAdapter, ...]
    device: str
    dtype: str
    process: int
    """Number of this process; process 0 reports for all."""


def run(config: InferShardsConfig, progress: Progress = SILENT) -> InferShardsResult:
    """Translate every remaining shard. All shards are inspected, and all options checked, first.

    Raises:
        MissingExtraError: a package of the train extra is not installed.
        InputError: invalid input of any kind; see `lbm_lora.errors`.
    """
    config = localized(config, progress)
    _check(config)
    need_packages("translating shards", _PACKAGES, "train")
    from lbm_lora.inference.shards import (
        ShardKeys,
        ShardTask,
        Translate,
        check_corrupt,
        check_settings,
        plan_shards,
        predict,
    )
    from lbm_lora.training.launch import open_fabric, quiet_lightning

    folder = home_path(config.output_path)
    with quiet_lightning():
        fabric = open_fabric(config)
        progress = progress if fabric.is_global_zero else SILENT
        keys = ShardKeys(source=config.source_key, mask=config.mask_key)
        files = Outputs(overwrite=config.overwrite)
        files.then(
            planned_missing(config.base, backbone_signature=config.backbone_signature, config_path=config.config_path)
        )
        files.then(Outputs().reads(*config.input_files))
        jobs = plan_shards(
            config.source_shards,
            folder,
            keys,
            cache_dir=config.cache_dir,
            files=files,
            progress=progress,
        )
        check_corrupt(jobs, (), config.max_corrupt)
        base = ensure_base(
            config.base,
            backbone_signature=config.backbone_signature,
            config_path=config.config_path,
            overwrite=config.overwrite,
            progress=progress,
        )
        with open_checkpoint(base) as checkpoint:
            lbm = resolve_config(checkpoint, config_path=config.config_path)
            refuse_conditioning(lbm, where=checkpoint.path)
            check_step_count(config.num_inference_steps, step_counts(lbm), what="num_inference_steps")
            adapters, applied = read_adapters(config, checkpoint, progress)
            settings = _identity(config, checkpoint, lbm)
        check_settings(folder, settings)

        def load(device: torch.device) -> Translate:
            pipe = LBMPipeline.from_checkpoint(
                base, config_path=config.config_path, device=device, torch_dtype=config.torch_dtype
            )
            warn_of_size(config.size, pipe.size)
            put_in(config, pipe, adapters)
            chosen = translate_settings(config)
            return lambda source, mask: translate_image(pipe, source, chosen, mask=mask)

        predicted = predict(
            fabric,
            jobs,
            ShardTask(keys=keys, format=config.output_format, settings=settings),
            load,
            max_corrupt=config.max_corrupt,
            progress=progress,
        )
    records = {job.name: predicted.records.get(job.name, job.record) for job in jobs}
    return InferShardsResult(
        folder=folder,
        written=len(predicted.records),
        present=sum(job.record is not None for job in jobs),
        images=sum(record.images for record in predicted.records.values()),
        skipped=tuple(item for record in records.values() if record is not None for item in record.skipped),
        stopped_by=predicted.stopped_by,
        adapters=applied,
        device=str(fabric.device),
        dtype=dtype_name(dtype_of(config.torch_dtype)),
        process=fabric.global_rank,
    )


def _check(config: InferShardsConfig) -> None:
    if config.devices < 1 or config.num_nodes < 1:
        raise ConfigError(Option("devices"), " and ", Option("num_nodes"), " must be 1 or more.")
    if config.devices > 1 and ":" in config.device:
        raise ConfigError(
            Option("device"), f" {config.device} is a single device, but ", Option("devices"), f" is {config.devices}."
        )
    if not 0 <= config.max_corrupt <= 1:
        raise ConfigError(Option("max_corrupt"), f" must be between 0 and 1, got {config.max_corrupt:g}.")


def _identity(config: InferShardsConfig, checkpoint: Checkpoint, lbm: LBMConfig) -> dict[str, Any]:
    """Return everything that an image depends on, for JSON; files by their content, so that they may move."""
    return {
        "base_model_path (by content)": fingerprint(checkpoint.component()).digest,
        "VAE (by content)": fingerprint(checkpoint.component(VAE_PREFIX)).digest,
        "configuration (by content)": xxhash.xxh3_128_hexdigest(lbm.model_dump_json().encode()),
        "lora_path (by content)": [lora_digest(path) for path in config.lora_path],
        "lora_scale": [LoraScale.parse(scale).plain for scale in config.lora_scale],
        "lora_alpha_is": None if config.lora_alpha_is == "auto" else config.lora_alpha_is,  # runs before it had none
        "crop": config.crop or None,  # likewise
        "num_inference_steps": config.num_inference_steps,
        "seed": config.seed,
        "size": config.size,
        "keep_detail": config.keep_detail or None,  # likewise
        "match_color": config.match_color or None,
        "mode": config.mode,
        "torch_dtype": config.torch_dtype,
        "sample_posterior": config.sample_posterior,
        "vae_tiling": config.vae_tiling,
        "attention_only": config.attention_only,
        "source_key": config.source_key,
        "mask_key": config.mask_key,
        "output_format": config.output_format,
        "device": resolve_device(config.device).type,
    }
