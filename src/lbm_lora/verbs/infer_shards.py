"""Translate WebDataset shards with an LBM checkpoint and LoRAs, by one process or several: `infer --source_shards`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Interval

from lbm_lora.errors import ConfigError, Option, home_path, need_packages
from lbm_lora.progress import SILENT, Progress
from lbm_lora.verbs.options import (
    ADVANCED,
    AllowOtherBase,
    AllowUnmatched,
    AnyBase,
    AnyDevice,
    AttentionOnly,
    Backbone,
    ConfigPath,
    Crop,
    Folder,
    ImageSeed,
    ImageSteps,
    KeepDetail,
    LoraAlphaIs,
    LoraMode,
    Loras,
    LoraScale,
    MatchColor,
    Named,
    NetworkPrecision,
    Overwrite,
    SamplePosterior,
    Several,
    Share,
    VaeTiling,
    WorkSize,
)
from lbm_lora.verbs.verb import EVERYDAY, verb

if TYPE_CHECKING:
    import torch

    from lbm_lora.apply import AppliedAdapter
    from lbm_lora.checkpoint import Checkpoint
    from lbm_lora.inference.shards import Translate
    from lbm_lora.model.config import LBMConfig
    from lbm_lora.shards.samples import Skipped


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
    skipped: "tuple[Skipped, ...]"
    """Unusable samples in all shards written so far."""
    stopped_by: str
    """The signal that stopped the run early, else empty."""
    adapters: "tuple[AppliedAdapter, ...]"
    device: str
    dtype: str
    process: int
    """Number of this process; process 0 reports for all."""


def _text(result: InferShardsResult, verbose: bool) -> str:
    """Return the counts of written, existing and unusable shards and images."""
    from lbm_lora.report.wording import plural, printable
    from lbm_lora.verbs.lines import paragraphs, skipped_lines

    head = (
        f"Translated {plural(result.images, 'image')} of {plural(result.written, 'shard')} into {result.folder} on "
        f"{result.device} in {result.dtype}; {plural(result.present, 'shard')} already existed."
    )
    if result.stopped_by:
        head = f"Stopped by {result.stopped_by}. {head} Run the same command to resume."
    skipped = [f"{plural(len(result.skipped), 'sample')} cannot be used.", *skipped_lines(result.skipped, verbose)]
    return paragraphs(printable(head), "\n".join(skipped) if result.skipped else "")


@verb(
    "translate WebDataset shards with a checkpoint and LoRAs",
    group=EVERYDAY,
    examples=(
        "lbm-lora infer --base_model_path base.safetensors --lora_path lora.safetensors --source_shards "
        "'in/{000..009}.tar' --output_path out --devices 2",
    ),
    text=_text,
)
def infer_shards(
    base: AnyBase,
    source_shards: Annotated[Several[str], Named("SHARDS")],
    output_path: Annotated[str, Named("FOLDER")],
    lora: Loras = (),
    *,
    overwrite: Overwrite = False,
    lora_scale: Several[LoraScale] = (1.0,),
    lora_alpha_is: LoraAlphaIs = "auto",
    crop: Crop = False,
    num_inference_steps: ImageSteps = 1,
    seed: ImageSeed = 0,
    size: WorkSize = None,
    keep_detail: KeepDetail = 0.0,
    match_color: MatchColor = 0.0,
    mode: LoraMode = "fused",
    device: AnyDevice = "auto",
    torch_dtype: NetworkPrecision = "bf16",
    sample_posterior: SamplePosterior = False,
    vae_tiling: VaeTiling = "auto",
    attention_only: AttentionOnly = False,
    allow_other_base: AllowOtherBase = False,
    allow_unmatched: AllowUnmatched = False,
    config_path: ConfigPath = None,
    backbone_signature: Backbone = None,
    output_format: Literal["png", "jpg", "webp"] = "png",
    max_corrupt: Share = 0.05,
    devices: Annotated[int, Interval(ge=1, le=64)] = 1,
    source_key: Annotated[str, Named("KEY"), ADVANCED] = "source.jpg",
    mask_key: Annotated[str | None, Named("KEY"), ADVANCED] = None,
    cache_dir: Annotated[Folder | None, ADVANCED] = None,
    num_nodes: Annotated[int, Interval(ge=1, le=1024), ADVANCED] = 1,
    strategy: Annotated[Literal["auto", "ddp"], ADVANCED] = "auto",
    progress: Progress = SILENT,
) -> tuple[InferShardsResult, InferShardsResult]:
    """Translate the images of WebDataset shards with an LBM checkpoint and any number of LoRAs. An interrupted run
    resumes with the remaining shards.

    Args:
        source_shards: WebDataset shards: paths, URLs, patterns with {000..009}. Each gives a shard of the same name.
        output_path: Write the results to this folder.
        output_format: Format of the results, named NAME.output.png and so on.
        max_corrupt: Stop if a larger share of the samples than this is unreadable or incomplete.
        devices: Processes on one machine, each with its own device.
        source_key: Ending of a sample's source image. Any image extension matches.
        mask_key: Ending of a sample's mask, such as mask.png. Every sample must then have one. Default: no masks.
        cache_dir: Copy shards from URLs, and compressed ones, into this folder.
        num_nodes: Number of machines.
        strategy: How Lightning starts the processes. auto: ddp if there are several.

    Raises:
        MissingExtraError: a package of the train extra is not installed.
        InputError: invalid input of any kind; see `lbm_lora.errors`.
    """
    from lbm_lora.shards import SHARD_PACKAGES

    if devices > 1 and ":" in device:
        raise ConfigError(Option("device"), f" {device} is a single device, but ", Option("devices"), f" is {devices}.")
    need_packages("translating shards", ("lightning", *SHARD_PACKAGES), "train")
    from lbm_lora.adapter import LoraScale
    from lbm_lora.adapter.adapter_file import lora_digest
    from lbm_lora.apply import fitting_adapters
    from lbm_lora.checkpoint import dtype_name, dtype_of, open_checkpoint
    from lbm_lora.files import Outputs
    from lbm_lora.hub import local_checkpoint
    from lbm_lora.imaging.buckets import warn_of_size
    from lbm_lora.inference.shards import ShardKeys, ShardTask, check_corrupt, check_settings, plan_shards, predict
    from lbm_lora.inference.translate import TranslateSettings, put_in, translate_image
    from lbm_lora.model.build import refuse_conditioning
    from lbm_lora.model.device import resolve_device
    from lbm_lora.model.make_base import ensure_base, planned_missing
    from lbm_lora.model.pipeline import LBMPipeline
    from lbm_lora.model.resolve import resolve_config
    from lbm_lora.model.schedule import check_step_count, step_counts
    from lbm_lora.training.launch import open_fabric, quiet_lightning
    from lbm_lora.verbs.values import inputs, listed, path_of, several

    loras = listed(lora)
    scales = several(lora_scale)
    path = Path(str(base)) if backbone_signature else local_checkpoint(str(base), progress)
    config_path = None if config_path is None else Path(config_path)
    making: dict[str, Any] = {"backbone_signature": backbone_signature, "config_path": config_path}
    settings = TranslateSettings(
        steps=num_inference_steps,
        seed=seed,
        size=size,
        keep_detail=keep_detail,
        match_color=match_color,
        sample_posterior=sample_posterior,
        vae_tiling=vae_tiling,
    )
    recorded = {  # what an image depends on; files by their content, so that they may move
        "lora_path (by content)": [lora_digest(path_of(one, "LoRA")) for one in loras],
        "lora_scale": [LoraScale.parse(scale).plain for scale in scales],
        "lora_alpha_is": None if lora_alpha_is == "auto" else lora_alpha_is,  # runs before it had none
        "crop": crop or None,  # likewise
        "num_inference_steps": num_inference_steps,
        "seed": seed,
        "size": size,
        "keep_detail": keep_detail or None,  # likewise
        "match_color": match_color or None,
        "mode": mode,
        "torch_dtype": torch_dtype,
        "sample_posterior": sample_posterior,
        "vae_tiling": vae_tiling,
        "attention_only": attention_only,
        "source_key": source_key,
        "mask_key": mask_key,
        "output_format": output_format,
        "device": resolve_device(device).type,
    }
    folder = home_path(output_path)
    keys = ShardKeys(source=source_key, mask=mask_key)
    with quiet_lightning():
        fabric = open_fabric(device, devices, num_nodes, strategy)
        progress = progress if fabric.is_global_zero else SILENT
        files = Outputs(overwrite=overwrite).then(planned_missing(path, **making))
        files.then(Outputs().reads(*inputs(path, config_path, *loras)))
        jobs = plan_shards(
            several(source_shards),
            folder,
            keys,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            files=files,
            progress=progress,
        )
        check_corrupt(jobs, (), max_corrupt)
        made = ensure_base(path, **making, overwrite=overwrite, progress=progress)
        with open_checkpoint(made) as checkpoint:
            lbm = resolve_config(checkpoint, config_path=config_path)
            refuse_conditioning(lbm, where=checkpoint.path)
            check_step_count(num_inference_steps, step_counts(lbm), what="num_inference_steps")
            adapters, applied = fitting_adapters(
                checkpoint.component(),
                loras,
                scales,
                alpha_is=lora_alpha_is,
                crop=crop,
                attention_only=attention_only,
                allow_other_base=allow_other_base,
                allow_unmatched=allow_unmatched,
                progress=progress,
            )
            recorded = {**_contents(checkpoint, lbm), **recorded}
        check_settings(folder, recorded)

        def load(device: "torch.device") -> "Translate":
            pipe = LBMPipeline.from_checkpoint(made, config_path=config_path, device=device, torch_dtype=torch_dtype)
            warn_of_size(size, pipe.size)
            put_in(pipe, adapters, mode)
            return lambda source, mask: translate_image(pipe, source, settings, mask=mask)

        task = ShardTask(keys=keys, format=output_format, settings=recorded)
        predicted = predict(fabric, jobs, task, load, max_corrupt=max_corrupt, progress=progress)
    records = {job.name: predicted.records.get(job.name, job.record) for job in jobs}
    result = InferShardsResult(
        folder=folder,
        written=len(predicted.records),
        present=sum(job.record is not None for job in jobs),
        images=sum(record.images for record in predicted.records.values()),
        skipped=tuple(item for record in records.values() if record is not None for item in record.skipped),
        stopped_by=predicted.stopped_by,
        adapters=applied,
        device=str(fabric.device),
        dtype=dtype_name(dtype_of(str(torch_dtype))),
        process=fabric.global_rank,
    )
    return result, result


def _contents(checkpoint: "Checkpoint", lbm: "LBMConfig") -> dict[str, str]:
    """Return the digests of a base that every image depends on."""
    import xxhash

    from lbm_lora.checkpoint import fingerprint
    from lbm_lora.model.constants import VAE_PREFIX

    return {
        "base_model_path (by content)": fingerprint(checkpoint.component()).digest,
        "VAE (by content)": fingerprint(checkpoint.component(VAE_PREFIX)).digest,
        "configuration (by content)": xxhash.xxh3_128_hexdigest(lbm.model_dump_json().encode()),
    }
