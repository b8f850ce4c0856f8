"""Translate pictures with an LBM checkpoint and LoRAs: the verb `infer`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from lbm_lora.apply import ScaledAdapter, fuse_module, inject
from lbm_lora.checkpoint import dtype_name, dtype_of, open_checkpoint
from lbm_lora.errors import ConfigError
from lbm_lora.imaging.files import read_image, write_image
from lbm_lora.imaging.grids import comparison_grid, tile
from lbm_lora.infer.jobs import Job, Settings, plan_jobs, translations
from lbm_lora.infer.pipeline import check_steps
from lbm_lora.model.build import LBMModel, load_model
from lbm_lora.progress import SILENT, Progress
from lbm_lora.workflows.adapters import AppliedAdapter, fitting_adapters
from lbm_lora.workflows.base import ensure_base

_TILED: dict[str, bool | None] = {"auto": None, "on": True, "off": False}

Columns = dict[str, list[Image.Image]]
"""Label -> one tile for each job: the columns of the side-by-side pictures."""


@dataclass(frozen=True, kw_only=True)
class InferConfig:
    """Translate pictures with an LBM checkpoint and any number of LoRAs."""

    source_image: str
    """Picture, folder of pictures, or quoted glob ('photos/*.jpg')."""
    output_path: str
    """File to write, or a folder; several pictures need a folder. The format follows the extension."""
    base_model_path: Path | None = None
    """Checkpoint that the LoRAs were made for. Where it is missing and a backbone is given, it is made there."""
    lora_path: tuple[Path, ...] = ()
    """LoRA files, all applied together. None: the checkpoint as it is."""
    lora_scale: tuple[float, ...] = (1.0,)
    """Factor of each LoRA, or one for all: 0 is the base, 1 the LoRA as it was made; may be negative."""
    num_inference_steps: int = 1
    """Denoiser calls. Published LBMs are trained for 1, 2 and 4."""
    seed: int = 0
    """Of the noise between steps. One seed gives one picture, whatever else is translated with it."""
    size: int | None = None
    """Square root of the pixel budget (1024: about one megapixel). Default: the model's own."""
    mask: str | None = None
    """Mask, or a folder with one of each picture's name: white takes the result, black keeps the source."""
    mode: Literal["fused", "live"] = "fused"
    """Add the LoRAs to the weights (fused: steps cost nothing extra), or compute them beside them (live)."""
    compare: bool = False
    """Also write NAME_compare: source | base | with LoRA | tuned side by side."""
    tuned_model_path: Path | None = None
    """The fully fine-tuned checkpoint, for the last column of --compare."""
    device: str = "auto"
    """auto (CUDA where there is one, else the CPU), cpu, cuda, cuda:N or mps (untested)."""
    torch_dtype: Literal["float", "fp16", "bf16"] = "bf16"
    """Precision that the networks run in."""
    sample_posterior: bool = False
    """Sample the VAE's posterior, as LBM's own inference does, instead of taking its mean."""
    vae_tiling: Literal["auto", "on", "off"] = "auto"
    """Decode in overlapping tiles: less memory. auto: where a side is above 1024 pixels."""
    attention_only: bool = False
    """Apply only the part of the LoRAs whose keys contain attn1.to or attn2.to."""
    allow_other_base: bool = False
    """Go on where a LoRA was made from another base."""
    allow_unmatched: bool = False
    """Go on where keys of a LoRA match nothing in the model."""
    config_path: Path | None = None
    """LBM's config.yaml, for a checkpoint that has none beside it or in it."""
    backbone_signature: str | None = None
    """Hub id, folder or file of the backbone; only used where --base_model_path is missing."""


@dataclass(frozen=True, kw_only=True)
class TranslatedImage:
    """One picture that was written."""

    source: Path
    output: Path
    comparison: Path | None
    """The side-by-side picture of --compare."""
    width: int
    """Of source and output, pixels."""
    height: int
    model_width: int
    """Of what the model worked on, pixels."""
    model_height: int
    seconds: float
    """Reading, networks and stretching; without the writing."""


@dataclass(frozen=True, kw_only=True)
class InferResult:
    """What `run` did."""

    outputs: tuple[TranslatedImage, ...]
    adapters: tuple[AppliedAdapter, ...]
    device: str
    dtype: str


def run(config: InferConfig, progress: Progress = SILENT) -> InferResult:
    """Translate every source and write the results. All paths, LoRAs and options are checked first.

    Raises:
        InputError: of the kind that fits; see `lbm_lora.errors`.
    """
    jobs = _plan(config)
    base = _base(config, progress)
    with open_checkpoint(base) as checkpoint:
        adapters, applied = fitting_adapters(
            checkpoint.component(),
            config.lora_path,
            config.lora_scale,
            attention_only=config.attention_only,
            allow_other_base=config.allow_other_base,
            allow_unmatched=config.allow_unmatched,
            progress=progress,
        )
    model = _load(config, base, "base", progress)
    check_steps(model.config, config.num_inference_steps)
    columns = _columns_without(config, jobs, model, adapters, progress)
    put_in(model, adapters, config.mode)
    outputs, tiles = _write_all(config, jobs, model, progress)
    columns["with LoRA" if adapters else "base"] = tiles
    result = InferResult(outputs=outputs, adapters=applied, device=str(model.device), dtype=dtype_name(model.dtype))
    del model  # so that the tuned one does not stand beside it in memory
    _write_comparisons(config, jobs, columns, progress)
    return result


def _base(config: InferConfig, progress: Progress) -> Path:
    """The base checkpoint; where it is missing and a backbone is given, it is made there first."""
    if config.base_model_path is None:
        raise ConfigError(
            "--base_model_path is missing. Give a base or any LBM checkpoint; `lbm-lora base` makes the exact "
            "base of a backbone."
        )
    if config.backbone_signature is None:
        return config.base_model_path
    return ensure_base(
        config.base_model_path,
        backbone_signature=config.backbone_signature,
        config_path=config.config_path,
        progress=progress,
    )


def put_in(model: LBMModel, adapters: Sequence[ScaledAdapter], mode: Literal["fused", "live"]) -> None:
    """Put the adapters into the denoiser, for good."""
    if mode == "fused":
        fuse_module(model.denoiser, adapters)
    else:
        inject(model.denoiser, adapters)


def _plan(config: InferConfig) -> list[Job]:
    if config.tuned_model_path is not None and not config.compare:
        raise ConfigError("--tuned_model_path is only used with --compare. Add it, or leave the path out.")
    models = (config.base_model_path, config.tuned_model_path, config.config_path, *config.lora_path)
    return plan_jobs(
        config.source_image,
        config.output_path,
        mask=config.mask,
        compare=config.compare,
        inputs=[path for path in models if path is not None],
    )


def _settings(config: InferConfig) -> Settings:
    return Settings(
        steps=config.num_inference_steps,
        seed=config.seed,
        size=config.size,
        sample_posterior=config.sample_posterior,
        tiled=_TILED[config.vae_tiling],
    )


def _load(config: InferConfig, path: Path, what: str, progress: Progress) -> LBMModel:
    progress.start(0, f"loading the {what} model")
    dtype = dtype_of(config.torch_dtype)
    return load_model(path, config_path=config.config_path, device=config.device, dtype=dtype)


def _columns_without(
    config: InferConfig,
    jobs: Sequence[Job],
    model: LBMModel,
    adapters: Sequence[ScaledAdapter],
    progress: Progress,
) -> Columns:
    """The columns of --compare before the LoRAs are in: the sources, and what the base makes of them."""
    columns: Columns = {}
    if config.compare:
        columns["source"] = [tile(read_image(job.source)) for job in jobs]
        if adapters:
            columns["base"] = _tiles(config, jobs, model, "translating with the base", progress)
    return columns


def _tiles(
    config: InferConfig, jobs: Sequence[Job], model: LBMModel, what: str, progress: Progress
) -> list[Image.Image]:
    return [tile(made.picture) for made in translations(model, jobs, _settings(config), progress, what)]


def _write_all(
    config: InferConfig, jobs: Sequence[Job], model: LBMModel, progress: Progress
) -> tuple[tuple[TranslatedImage, ...], list[Image.Image]]:
    """Translate and write every job; with --compare also the tiles for it."""
    outputs: list[TranslatedImage] = []
    tiles: list[Image.Image] = []
    made = translations(model, jobs, _settings(config), progress, "translating")
    for job, translation in zip(jobs, made, strict=True):
        write_image(translation.picture, job.output, inputs=[job.source])
        if config.compare:
            tiles.append(tile(translation.picture))
        outputs.append(
            TranslatedImage(
                source=job.source,
                output=job.output,
                comparison=job.comparison,
                width=translation.picture.width,
                height=translation.picture.height,
                model_width=translation.model_size[0],
                model_height=translation.model_size[1],
                seconds=translation.seconds,
            )
        )
    return tuple(outputs), tiles


def _write_comparisons(config: InferConfig, jobs: Sequence[Job], columns: Columns, progress: Progress) -> None:
    """The side-by-side pictures, after the tuned model's column where one is asked for."""
    if config.tuned_model_path is not None:
        tuned = _load(config, config.tuned_model_path, "tuned", progress)
        columns["tuned"] = _tiles(config, jobs, tuned, "translating with the tuned model", progress)
    for index, job in enumerate(jobs):
        if job.comparison is not None:
            row = [tiles[index] for tiles in columns.values()]
            write_image(comparison_grid(list(columns), [row]), job.comparison, inputs=[job.source])
