"""The numbers of an output comparison over all images."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from lbm_lora.report import (
    DenoiserScore,
    ImageComparison,
    ImageScore,
    OutputComparison,
    VariantScores,
    summarize,
    summarize_denoiser,
    worst_first,
)
from lbm_lora.report.outputs import has_masks


def image(name: str, *psnrs: float, error: float = 0.1) -> ImageComparison:
    """An image with one variant, which has these PSNRs at 1, 2, ... steps."""
    images = tuple(
        ImageScore(steps=steps, psnr=psnr, ssim=psnr / 100 if math.isfinite(psnr) else 1.0, lpips=1 / psnr)
        for steps, psnr in enumerate(psnrs, 1)
    )
    scores = VariantScores(variant="v", denoiser=(DenoiserScore(timestep=1000.0, error=error),), images=images)
    return ImageComparison(image=name, width=8, height=8, scores=(scores,))


def test_mean_and_worst_of_each_number_of_steps() -> None:
    first, second = summarize([image("a", 20.0, 50.0), image("b", 40.0, 25.0)])
    assert (first.steps, first.mean_psnr, first.worst_psnr, first.worst_image) == (1, 30.0, 20.0, "a")
    assert (second.steps, second.mean_psnr, second.worst_psnr, second.worst_image) == (2, 37.5, 25.0, "b")
    assert (first.mean_ssim, first.worst_ssim) == (pytest.approx(0.3), 0.2)
    assert (first.mean_lpips, first.worst_lpips) == (pytest.approx(0.0375), 0.05)  # the highest is the worst


def test_equal_images_are_counted_and_not_averaged() -> None:
    (entry,) = summarize([image("a", math.inf), image("b", 40.0), image("c", 60.0)])
    assert (entry.mean_psnr, entry.worst_psnr, entry.equal_images) == (50.0, 40.0, 1)
    (same,) = summarize([image("a", math.inf)])
    assert (same.mean_psnr, same.worst_psnr, same.equal_images) == (math.inf, math.inf, 1)


def test_denoiser_errors() -> None:
    (entry,) = summarize_denoiser([image("a", 1.0, error=0.1), image("b", 1.0, error=0.3)])
    assert (entry.timestep, entry.mean_error, entry.worst_error, entry.worst_image) == (1000, 0.2, 0.3, "b")
    (broken,) = summarize_denoiser([image("a", 1.0, error=0.1), image("b", 1.0, error=math.inf)])
    assert (broken.mean_error, broken.worst_error) == (math.inf, math.inf)


def test_the_worst_image_is_the_loras(
    outputs: OutputComparison, build_outputs: Callable[..., OutputComparison]
) -> None:
    """By its lowest PSNR at any number of steps; what the base makes of it does not count."""
    assert [found.image for found in worst_first(outputs)] == ["cup.png", "tree.jpg"]
    tree, cup = outputs.images
    better = tuple(replace(score, psnr=90.0) for score in cup.scores[1].images)
    cup = replace(cup, scores=(cup.scores[0], replace(cup.scores[1], images=better)))
    assert [found.image for found in worst_first(build_outputs(tree, cup))] == ["tree.jpg", "cup.png"]
    alone = [replace(image, scores=image.scores[:1]) for image in outputs.images]
    assert [found.image for found in worst_first(build_outputs(*alone))] == ["tree.jpg", "cup.png"]


def test_whether_there_are_masks(outputs: OutputComparison, build_outputs: Callable[..., OutputComparison]) -> None:
    assert has_masks(outputs)
    assert not has_masks(build_outputs(outputs.images[0]))
