"""The verb `infer` over WebDataset shards, by one process or several."""

from pathlib import Path
from typing import Any

import torch
import xxhash

from lbm_lora.checkpoint import Checkpoint, dtype_name, dtype_of, fingerprint, open_checkpoint
from lbm_lora.infer.jobs import translate_read
from lbm_lora.infer.pipeline import check_steps
from lbm_lora.infer.shards.plan import ShardJob, ShardKeys, check_corrupt, plan_shards
from lbm_lora.infer.shards.predict import Predicted, predict
from lbm_lora.infer.shards.record import check_settings, write_settings
from lbm_lora.infer.shards.work import ShardTask, Translate
from lbm_lora.model.build import load_model, refuse_conditioning
from lbm_lora.model.config import LBMConfig
from lbm_lora.model.constants import VAE_PREFIX
from lbm_lora.model.device import resolve_device
from lbm_lora.model.resolve import resolve_config
from lbm_lora.progress import SILENT, Progress
from lbm_lora.trainer import open_trainer, quiet_lightning
from lbm_lora.workflows.infer_config import InferConfig
from lbm_lora.workflows.infer_model import base_path, input_files, put_in, read_adapters, settings_of
from lbm_lora.workflows.infer_result import InferResult, TranslatedShards


def translate_shards(config: InferConfig, progress: Progress = SILENT) -> InferResult:
    """Translate every shard that is not done yet. All of them are looked at, and all options checked, first.

    Raises:
        InputError: of the kind that fits; see `lbm_lora.errors`.
    """
    folder = Path(config.output_path).expanduser()
    with quiet_lightning():
        trainer = open_trainer(config, _strategy(config), folder, inference_mode=False)
        progress = progress if trainer.is_global_zero else SILENT
        keys = ShardKeys(source=config.source_key, mask=config.mask_key)
        jobs = plan_shards(
            config.source_shards,
            folder,
            keys,
            cache_dir=config.cache_dir,
            inputs=input_files(config),
            progress=progress,
        )
        check_corrupt(jobs, (), config.max_corrupt)
        base = base_path(config, progress)
        with open_checkpoint(base) as checkpoint:
            lbm = resolve_config(checkpoint, config_path=config.config_path)
            refuse_conditioning(lbm, where=checkpoint.path)
            check_steps(lbm, config.num_inference_steps)
            adapters, applied = read_adapters(config, checkpoint, progress)
            settings = _identity(config, checkpoint, lbm)
        check_settings(folder, settings, started=any(job.record is not None for job in jobs))
        if trainer.is_global_zero:
            write_settings(folder, settings)
            _remove_parts(jobs)

        def load(device: torch.device) -> Translate:
            dtype = dtype_of(config.torch_dtype)
            model = load_model(base, config_path=config.config_path, device=device, dtype=dtype)
            put_in(model, adapters, config.mode)
            return lambda source, mask: translate_read(model, source, mask, settings_of(config))[0]

        predicted = predict(
            trainer,
            jobs,
            ShardTask(keys=keys, format=config.output_format),
            load,
            max_corrupt=config.max_corrupt,
            progress=progress,
        )
    return InferResult(
        outputs=(),
        adapters=applied,
        device=str(trainer.strategy.root_device),
        dtype=dtype_name(dtype_of(config.torch_dtype)),
        shards=_summary(folder, jobs, predicted),
        rank=trainer.global_rank,
    )


def _strategy(config: InferConfig) -> str:
    return "ddp" if config.strategy == "auto" and config.devices * config.num_nodes > 1 else config.strategy


def _identity(config: InferConfig, checkpoint: Checkpoint, lbm: LBMConfig) -> dict[str, Any]:
    """Everything that a picture depends on, as JSON has it; files by their content, so that they may move."""
    return {
        "base_model_path (by content)": fingerprint(checkpoint.component()).digest,
        "VAE (by content)": fingerprint(checkpoint.component(VAE_PREFIX)).digest,
        "configuration (by content)": xxhash.xxh3_128_hexdigest(lbm.model_dump_json().encode()),
        "lora_path (by content)": [xxhash.xxh3_128_hexdigest(path.read_bytes()) for path in config.lora_path],
        "lora_scale": list(config.lora_scale),
        "num_inference_steps": config.num_inference_steps,
        "seed": config.seed,
        "size": config.size,
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


def _remove_parts(jobs: list[ShardJob]) -> None:
    """Remove what a killed run was writing. The other processes do not write before this one joins them."""
    for job in jobs:
        if job.record is None:
            for part in job.output.parent.glob(f".{job.name}.*part"):
                part.unlink(missing_ok=True)


def _summary(folder: Path, jobs: list[ShardJob], predicted: Predicted) -> TranslatedShards:
    records = {job.name: predicted.records.get(job.name, job.record) for job in jobs}
    return TranslatedShards(
        folder=folder,
        written=len(predicted.records),
        present=sum(job.record is not None for job in jobs),
        pictures=sum(record.pictures for record in predicted.records.values()),
        skipped=tuple(item for record in records.values() if record is not None for item in record.skipped),
        stopped_by=predicted.stopped_by,
    )
