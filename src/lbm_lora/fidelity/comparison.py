"""Compare the outputs of base, base + LoRAs and tuned on equal latents, as `validate --images` does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from lbm_lora.adapter import Adapter
from lbm_lora.apply import ScaledAdapter, fuse_module
from lbm_lora.checkpoint import CheckpointLike, dtype_name
from lbm_lora.errors import ConfigError
from lbm_lora.fidelity.answers import Answer, Question, answer, question
from lbm_lora.fidelity.lora_files import lora_files
from lbm_lora.fidelity.outputs import ImageSet, OutputComparison, VariantScores, worst_first
from lbm_lora.fidelity.points import image_latent
from lbm_lora.fidelity.scores import compared, scores
from lbm_lora.fidelity.shown import DIFFERENCE, ShownImage, side_by_side, tile
from lbm_lora.imaging.buckets import resized
from lbm_lora.imaging.digests import digests_of
from lbm_lora.imaging.image_file import read_image
from lbm_lora.imaging.paths import expand_sources
from lbm_lora.imaging.perceptual import Lpips, Net, load_lpips, net_of
from lbm_lora.model.build import LBMModel, load_model
from lbm_lora.model.device import resolve_device
from lbm_lora.model.schedule import STEP_COUNTS, check_steps, from_source, schedule_of, step_counts
from lbm_lora.naming import ParamName
from lbm_lora.progress import SILENT, Progress

BASE, TUNED = "base", "tuned"
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
    shown = _shown(comparison, result, reference, measured)
    return ComparisonResult(scores=result, image=side_by_side(shown), shown=tuple(image.encoded() for image in shown))


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
        measured.results.append(tile(image))
        measured.differences.append(tile(DIFFERENCE * (image - target)))
        progress.advance()
    return measured


def _load(settings: ComparisonSettings, checkpoint: CheckpointLike) -> LBMModel:
    return load_model(checkpoint, config_path=settings.config_path, device=settings.device, dtype=settings.dtype)


def _shown(
    comparison: Comparison, result: OutputComparison, reference: _Reference, measured: Mapping[str, _Measured]
) -> list[ShownImage]:
    variant = list(measured)[:2][-1]
    order = [result.images.index(image) for image in worst_first(result)]
    shown: list[ShownImage] = []
    pixels = 0
    for index in order[:_ROWS]:
        tuned = tile(reference.answers[index].images[reference.steps[0]])
        source = resized(read_image(comparison.sources[index]), tuned.size)
        results = {name: found.results[index] for name, found in measured.items()}
        shown.append(
            ShownImage(
                image=result.images[index].image,
                views={"source": source, **results, TUNED: tuned},
                psnrs={scored.variant: scored.images[0].psnr for scored in result.images[index].scores},
                variant=variant,
                reference=TUNED,
                difference=measured[variant].differences[index],
            )
        )
        pixels += 5 * tuned.width * tuned.height  # those of a row of the side-by-side image
        if pixels > _PIXELS:
            break
    return shown
