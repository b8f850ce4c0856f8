"""Compare the outputs of base, base + LoRAs and tuned on equal latents, as `validate --images` does.

The denoiser is compared at single points of the bridge, so that each timestep gets its own value, and in images, which
combine the errors of all steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lbm_lora.adapter import Adapter
from lbm_lora.adapter.metadata import parsed
from lbm_lora.apply import ScaledAdapter, fuse_module
from lbm_lora.checkpoint import CheckpointLike, dtype_name
from lbm_lora.errors import ConfigError
from lbm_lora.fidelity.answers import Answer, Question, answer, question
from lbm_lora.fidelity.output_errors import relative_error
from lbm_lora.fidelity.outputs import (
    DenoiserScore,
    ImageComparison,
    ImageScore,
    ImageSet,
    LoraFile,
    OutputComparison,
    VariantScores,
    summarize,
    summarize_denoiser,
    worst_first,
)
from lbm_lora.fidelity.points import image_latent
from lbm_lora.files import MARK, written_bytes
from lbm_lora.imaging.buckets import resized
from lbm_lora.imaging.digests import digests_of
from lbm_lora.imaging.grids import comparison_grid
from lbm_lora.imaging.image_file import encode_image, read_image
from lbm_lora.imaging.metrics import Weights, psnr, ssim
from lbm_lora.imaging.paths import expand_sources
from lbm_lora.imaging.perceptual import Lpips, Net, load_lpips, net_of
from lbm_lora.imaging.tensors import to_images
from lbm_lora.model.build import LBMModel, load_model
from lbm_lora.model.device import resolve_device
from lbm_lora.model.schedule import STEP_COUNTS, check_steps, from_source, schedule_of, step_counts
from lbm_lora.naming import ParamName
from lbm_lora.progress import SILENT, Progress

BASE, TUNED = "base", "tuned"
COMPARISON = f"{MARK}: comparison"
"""The mark of a report's image, which shows the results of several networks."""

_DIFFERENCE = 8  # how much stronger than it is the difference of two images is shown
_TILE = 512  # longer side of an image, pixels
_ROWS = 8  # most rows of the side-by-side image
_PIXELS = 6e6  # approximate pixels of the side-by-side image


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings:
    """Settings for comparing outputs; see the verb `validate`."""

    images: str | Sequence[str]
    steps: tuple[int, ...] = ()
    seed: int = 0
    size: int | None = None
    device: str = "auto"
    dtype: torch.dtype = torch.float32
    config_path: Path | None = None
    lpips_net: Net | None = None
    lpips_weights: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison that is ready to run: everything except the models has been read."""

    settings: ComparisonSettings
    sources: tuple[Path, ...]
    digests: tuple[str, ...]
    lpips: Lpips | None


@dataclass(frozen=True, kw_only=True)
class ComparisonResult:
    """Scores, and the worst images: side by side in a PNG file, and separately for the page."""

    scores: OutputComparison
    image: bytes
    shown: tuple[ImageSet, ...]


def plan_comparison(settings: ComparisonSettings) -> Comparison:
    """Check and read all inputs before a model is loaded."""
    if any(count < 1 for count in settings.steps):
        raise ConfigError(f"steps must be 1 or more, got {min(settings.steps)}.")
    sources = expand_sources(settings.images)
    digests = digests_of(sources).each
    weights, net = settings.lpips_weights, settings.lpips_net
    if weights is not None:
        net = net or net_of(weights)
    device = resolve_device(settings.device)
    return Comparison(
        settings=settings,
        sources=sources,
        digests=digests,
        lpips=None if net is None else load_lpips(net, weights, device),
    )


def compare_outputs(
    comparison: Comparison,
    *,
    base: CheckpointLike,
    tuned: CheckpointLike,
    adapters: Mapping[str, Adapter],
    progress: Progress = SILENT,
) -> ComparisonResult:
    """Run tuned, base, and base with each adapter in turn, with one model in memory at a time.

    The latents and the points of the bridge are the tuned model's. Its images are kept in fp32 until all variants are
    measured: 13 MB per one-megapixel image and number of steps. The variants' images are not kept.

    Args:
        adapters: variant -> the adapter fused into the base for it. The side-by-side image shows the first.
    """
    progress.start((2 + len(adapters)) * len(comparison.sources), "comparing outputs")
    reference = _reference(comparison, tuned, progress)
    variants: dict[str, Adapter | None] = {BASE: None, **adapters}
    measured = {
        variant: _measured(comparison, reference, variant, base, adapter, progress)
        for variant, adapter in variants.items()
    }
    result = compared(
        {variant: found.scores for variant, found in measured.items()},
        reference.answers,
        names=[source.name for source in comparison.sources],
        reference=TUNED,
        seed=comparison.settings.seed,
        dtype=dtype_name(comparison.settings.dtype),
        device=reference.device,
        lpips=comparison.lpips.net if comparison.lpips else None,
    )
    result = replace(result, loras=lora_files(adapters))
    shown, image = _shown(comparison, result, reference, measured)
    return ComparisonResult(scores=result, image=image, shown=shown)


@dataclass(frozen=True, kw_only=True)
class _Reference:
    """Questions for every variant, and the answers to measure it against, in the order of the sources."""

    questions: list[Question]
    answers: list[Answer]
    steps: tuple[int, ...]
    device: str


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """Scores of one variant, and its results and their differences from tuned for the side-by-side image."""

    scores: list[VariantScores]
    results: list[Image.Image]
    differences: list[Image.Image]


def _reference(comparison: Comparison, tuned: CheckpointLike, progress: Progress) -> _Reference:
    settings = comparison.settings
    model = _load(settings, tuned)
    schedule, counts = from_source(schedule_of(model.config)), step_counts(model.config)
    steps = tuple(sorted(set(settings.steps))) or (STEP_COUNTS if counts is None else counts or (1,))
    for count in steps:
        check_steps(model.config, count)
    questions: list[Question] = []
    answers: list[Answer] = []
    for source in comparison.sources:
        latent = image_latent(model, source, size=settings.size)
        questions.append(question(model, latent, schedule, seed=settings.seed))
        answers.append(answer(model, questions[-1], steps, seed=settings.seed))
        progress.advance()
    return _Reference(questions=questions, answers=answers, steps=steps, device=str(model.device))


def _measured(
    comparison: Comparison,
    reference: _Reference,
    variant: str,
    base: CheckpointLike,
    adapter: Adapter | None,
    progress: Progress,
) -> _Measured:
    settings = comparison.settings
    model = _load(settings, base)
    if adapter is not None:
        names = {ParamName(name) for name, _ in model.denoiser.named_parameters()}
        fuse_module(model.denoiser, [ScaledAdapter(adapter.filtered(names.__contains__))])
    measured = _Measured(scores=[], results=[], differences=[])
    for asked, wanted in zip(reference.questions, reference.answers, strict=True):
        found = answer(model, asked, reference.steps, seed=settings.seed)
        measured.scores.append(scores(variant, found, wanted, lpips=comparison.lpips))
        image, target = (reply.images[reference.steps[0]] for reply in (found, wanted))
        measured.results.append(_tile(image))
        measured.differences.append(_tile(_DIFFERENCE * (image - target)))
        progress.advance()
    return measured


def _load(settings: ComparisonSettings, checkpoint: CheckpointLike) -> LBMModel:
    return load_model(checkpoint, config_path=settings.config_path, device=settings.device, dtype=settings.dtype)


def _shown(
    comparison: Comparison, result: OutputComparison, reference: _Reference, measured: Mapping[str, _Measured]
) -> tuple[tuple[ImageSet, ...], bytes]:
    """The worst images for the page, and side by side: source, base, the LoRA, tuned and what these two differ in."""
    variant = list(measured)[:2][-1]
    names = list(dict.fromkeys(["source", BASE, variant, TUNED]))
    sets: list[ImageSet] = []
    rows: list[list[Image.Image]] = []
    pixels = 0
    for index in [result.images.index(image) for image in worst_first(result)][:_ROWS]:
        tuned = _tile(reference.answers[index].images[reference.steps[0]])
        source = resized(read_image(comparison.sources[index]), tuned.size)
        views = {"source": source, **{name: found.results[index] for name, found in measured.items()}, TUNED: tuned}
        difference = measured[variant].differences[index]
        sets.append(
            ImageSet(
                image=result.images[index].image,
                width=difference.width,
                height=difference.height,
                views={name: _png(view) for name, view in views.items()},
                psnrs={scored.variant: scored.images[0].psnr for scored in result.images[index].scores},
                difference=_png(difference),
                difference_title=f"{variant} minus {TUNED}, {_DIFFERENCE} times amplified; grey: no difference",
            )
        )
        rows.append([*(views[name] for name in names), difference])
        pixels += 5 * tuned.width * tuned.height
        if pixels > _PIXELS:
            break
    labels = [*names, f"difference from {TUNED}\n{_DIFFERENCE} times, grey: none"]
    return tuple(sets), _png(comparison_grid(labels, rows))


def _tile(image: Tensor) -> Image.Image:
    """An image of values in [-1, 1] (what is outside is clamped), reduced where it is large."""
    shown = to_images(image[None])[0]
    shown.thumbnail((_TILE, _TILE), Image.Resampling.LANCZOS)
    return shown


def _png(image: Image.Image) -> bytes:
    return encode_image(image, ".png", mark=COMPARISON, optimize=True)


def scores(
    variant: str, found: Answer, wanted: Answer, *, mask: Weights | None = None, lpips: Lpips | None = None
) -> VariantScores:
    """Measure a variant's answer against the reference's answer to the same question.

    Args:
        mask: weights (height, width) of the masked scores.
    """
    return VariantScores(
        variant=variant,
        denoiser=tuple(
            DenoiserScore(timestep=timestep, error=relative_error(found.predictions[timestep], prediction))
            for timestep, prediction in wanted.predictions.items()
        ),
        images=tuple(
            _image_score(steps, found.images[steps], image, mask, lpips) for steps, image in wanted.images.items()
        ),
    )


def compared(
    found: Mapping[str, Sequence[VariantScores]],
    references: Sequence[Answer],
    *,
    names: Sequence[str],
    reference: str,
    seed: int,
    dtype: str,
    device: str,
    lpips: str | None = None,
) -> OutputComparison:
    """Combine all scores in one value."""
    if not names or not found:
        raise ConfigError(f"nothing to compare: {len(names)} images and {len(found)} variants.")
    images: list[ImageComparison] = []
    for index, (name, answered) in enumerate(zip(names, references, strict=True)):
        height, width = next(iter(answered.images.values())).shape[-2:]
        of_image = tuple(scored[index] for scored in found.values())
        images.append(ImageComparison(image=name, width=width, height=height, scores=of_image))
    return OutputComparison(
        reference=reference,
        steps=tuple(references[0].images),
        timesteps=tuple(references[0].predictions),
        seed=seed,
        dtype=dtype,
        device=device,
        lpips=lpips,
        images=tuple(images),
        summary=summarize(images),
        denoiser=summarize_denoiser(images),
    )


@torch.no_grad()
def _image_score(steps: int, image: Tensor, target: Tensor, mask: Weights | None, lpips: Lpips | None) -> ImageScore:
    return ImageScore(
        steps=steps,
        psnr=psnr(image, target),
        ssim=ssim(image, target),
        lpips=None if lpips is None else float(lpips(image[None], target[None])),
        mask_psnr=None if mask is None else psnr(image, target, mask),
        mask_ssim=None if mask is None else ssim(image, target, mask),
    )


_SPLITS = {
    "max_size": "ranks chosen across layers",
    "max_error": "ranks chosen across layers",
    "max_output_error": "ranks chosen across layers",
    "min_psnr": "ranks chosen across layers",
    "keep_energy": "same energy in each layer",
    "max_module_error": "same error in each layer",
}
"""Rank policy -> how it splits ranks between layers. The first four follow one rule, each to another limit."""


def lora_files(adapters: Mapping[str, Adapter]) -> tuple[LoraFile, ...]:
    """One entry for each variant whose adapter was read from a file, as the file describes itself."""
    files: list[LoraFile] = []
    for variant, adapter in adapters.items():
        if adapter.path is None:
            continue
        settings = parsed(adapter.metadata.facts, "lbm_lora_settings")
        split, ranks = _ranks(settings)
        files.append(
            LoraFile(
                variant=variant,
                file=adapter.path.name,
                nbytes=written_bytes(adapter.path),
                method=str(settings.get("method") or settings.get("rank_policy") or "not said"),
                dtype=str(settings.get("dtype") or ""),
                split=split,
                ranks=ranks,
            )
        )
    return tuple(files)


def _ranks(settings: Mapping[str, object]) -> tuple[str, str]:
    """Return how ranks are split between layers, and fixed ranks; empty strings for what the file does not record."""
    rank, conv_rank = settings.get("rank"), settings.get("conv_rank")
    if not isinstance(rank, int) or not isinstance(conv_rank, int) or rank < 1:
        return _SPLITS.get(str(settings.get("rank_policy")), ""), ""
    if rank == conv_rank:
        return "equal ranks", f"rank {rank}"
    return f"conv rank {Fraction(conv_rank, rank)} of rank", f"rank {rank}, conv {conv_rank}"
