"""A small report made by hand, whose numbers can be followed, and LoRAs whose norms and spectra are known."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, AdapterMetadata, Ledger, LedgerRow, LoraModule, Status
from lbm_lora.factorize import Measure
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
)
from lbm_lora.fidelity.weights import WeightReport, weight_report
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.report import Report

PNG = b"\x89PNG\r\n\x1a\n and so on"


def make_row(
    name: str,
    status: Status,
    shape: tuple[int, ...],
    *,
    error: float,
    delta: float = 1.0,
    rank: int | None = None,
    reason: str = "",
    noise: float = 0.02,
) -> LedgerRow:
    """A ledger row whose delta has the norm `delta`, with `error` and `noise` as shares of it."""
    measure = Measure(
        numel=100,
        delta_sq=delta**2,
        error_sq=(error * delta) ** 2,
        delta_abs=2 * delta,
        error_abs=2 * error * delta,
        noise_sq=(noise * delta) ** 2,
    )
    return LedgerRow(ParamName(name), status, reason, shape, rank, measure)


ROWS = (
    make_row("conv_in.bias", Status.UNCHANGED, (8,), error=0, delta=0, noise=0, reason="equal in base and tuned"),
    make_row("conv_in.weight", Status.LORA, (8, 4, 3, 3), error=0.02, rank=4, reason="conv"),
    make_row("down_blocks.0.proj.bias", Status.DENSE, (16,), error=0, delta=0.1, reason="1-dimensional"),
    make_row("down_blocks.0.proj.weight", Status.LORA, (16, 12), error=0.3, delta=3.0, rank=2, reason="linear"),
    make_row("mid_block.out.weight", Status.EXCLUDED, (16, 16), error=1, delta=0.5, reason="in --exclude"),
    make_row("up_blocks.0.out.weight", Status.LORA, (16, 16), error=0.6, delta=0.2, rank=16, reason="linear"),
)


def weights_of(*rows: LedgerRow) -> WeightReport:
    """The report of these rows."""
    return weight_report(Ledger(rows), base="base.safetensors", tuned="tuned.safetensors", adapter="lora.safetensors")


@pytest.fixture
def row() -> Callable[..., LedgerRow]:
    """`row(name, status, shape, error=...)`: see `make_row`."""
    return make_row


@pytest.fixture
def build() -> Callable[..., WeightReport]:
    """`build(row, row, ...)`: the weight report of these rows."""
    return weights_of


@pytest.fixture
def weights() -> WeightReport:
    """Six tensors, at least one of each status and kind."""
    return weights_of(*ROWS)


def make_scores(variant: str, errors: tuple[float, float], *images: ImageScore) -> VariantScores:
    """The scores of one variant: denoiser errors at 1000 and 500, and decoded images."""
    denoiser = tuple(DenoiserScore(timestep=t, error=error) for t, error in zip((1000.0, 500.0), errors, strict=True))
    return VariantScores(variant=variant, denoiser=denoiser, images=images)


def outputs_of(*images: ImageComparison, **changes: Any) -> OutputComparison:
    """The comparison of these images, at the timesteps of `make_scores` and the steps of their scores."""
    settings: dict[str, Any] = {
        "reference": "tuned",
        "steps": tuple(score.steps for score in images[0].scores[0].images),
        "timesteps": (1000.0, 500.0),
        "seed": 0,
        "dtype": "fp32",
        "device": "cpu",
        "lpips": "vgg",
        "images": images,
        "summary": summarize(images),
        "denoiser": summarize_denoiser(images),
    }
    return OutputComparison(**(settings | changes))


IMAGES = (
    ImageComparison(
        image="tree.jpg",
        width=64,
        height=64,
        scores=(
            make_scores(
                "base",
                (0.7, 0.8),
                ImageScore(steps=1, psnr=14.0, ssim=0.5, lpips=0.6),
                ImageScore(steps=2, psnr=15.0, ssim=0.55, lpips=0.5),
            ),
            make_scores(
                "base + LoRA",
                (0.0, 0.03),
                ImageScore(steps=1, psnr=math.inf, ssim=1.0, lpips=0.0),
                ImageScore(steps=2, psnr=41.0, ssim=0.9912, lpips=0.00002),
            ),
        ),
    ),
    ImageComparison(
        image="cup.png",
        width=64,
        height=48,
        scores=(
            make_scores(
                "base",
                (0.5, 0.6),
                ImageScore(steps=1, psnr=18.25, ssim=0.71239, lpips=0.4, mask_psnr=15.0, mask_ssim=0.6),
                ImageScore(steps=2, psnr=19.0, ssim=0.72, lpips=0.3, mask_psnr=16.0, mask_ssim=0.61),
            ),
            make_scores(
                "base + LoRA",
                (0.04, 0.05),
                ImageScore(steps=1, psnr=40.5, ssim=0.99999, lpips=0.0125, mask_psnr=38.0, mask_ssim=0.98),
                ImageScore(steps=2, psnr=39.0, ssim=0.98, lpips=0.02, mask_psnr=37.0, mask_ssim=0.97),
            ),
        ),
    ),
)


@pytest.fixture
def outputs() -> OutputComparison:
    """Two images at 1 and 2 steps: one that the LoRA gives back exactly at 1, and one with a mask."""
    return outputs_of(*IMAGES)


@pytest.fixture
def build_outputs() -> Callable[..., OutputComparison]:
    """`build_outputs(image, ..., lpips=None)`: see `outputs_of`."""
    return outputs_of


@pytest.fixture
def several(outputs: OutputComparison) -> OutputComparison:
    """The same with a second LoRA, which is another file of the same scores, and a third of another method."""

    def with_others(image: ImageComparison) -> ImageComparison:
        base, lora = image.scores
        return replace(image, scores=(base, lora, replace(base, variant="small"), replace(lora, variant="other")))

    fixed = {"method": "fixed", "dtype": "bf16", "split": "equal ranks"}
    loras = (
        LoraFile(variant="base + LoRA", file="big.safetensors", nbytes=3_000_000, **fixed, ranks="rank 16"),
        LoraFile(variant="small", file="small.safetensors", nbytes=20_000, **fixed, ranks="rank 4"),
        LoraFile(variant="other", file="other.safetensors", nbytes=1_000_000, method="calibrated", dtype="fp16"),
    )
    return outputs_of(*map(with_others, outputs.images), loras=loras)


def image_set(image: str, *, side: int = 128, **changes: Any) -> ImageSet:
    """A set of four views, whose images are nothing but the head of a PNG file."""
    settings: dict[str, Any] = {
        "image": image,
        "width": side,
        "height": side,
        "views": dict.fromkeys(("source", "base", "base + LoRA", "tuned"), PNG),
        "psnrs": {"base": 18.25, "base + LoRA": 40.5},
        "difference": PNG,
        "difference_title": "base + LoRA minus tuned, 8 times amplified; grey: no difference",
    }
    return ImageSet(**(settings | changes))


@pytest.fixture
def build_set() -> Callable[..., ImageSet]:
    """`build_set("cup.png", side=64)`: see `image_set`."""
    return image_set


@pytest.fixture
def report(weights: WeightReport, outputs: OutputComparison) -> Report:
    """Weights, outputs and one note."""
    return Report(weights=weights, outputs=outputs, notes=("The VAEs differ in 3 of 248 tensors.",))


def module_of_spectrum(name: str, values: list[float], shape: tuple[int, int] = (6, 5), alpha: float = 0) -> LoraModule:
    """A linear lora module with these singular values, at scaling 1 unless `alpha` is given."""
    rank = len(values)
    generator = torch.Generator().manual_seed(len(name))
    left, _ = torch.linalg.qr(torch.randn(shape[0], rank, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(shape[1], rank, generator=generator))
    return LoraModule(ModuleName(name), right.mT, left * torch.tensor(values), alpha or float(rank))


@pytest.fixture
def spectrum() -> Callable[..., LoraModule]:
    """`spectrum("a.proj", [3.0, 1.0])`: see `module_of_spectrum`."""
    return module_of_spectrum


@pytest.fixture
def lora() -> Callable[..., Adapter]:
    """`lora(module, ..., dense={"a.bias": tensor})`: an adapter of these parts."""

    def make(
        *modules: LoraModule, dense: Mapping[str, Tensor] | None = None, metadata: AdapterMetadata | None = None
    ) -> Adapter:
        deltas = {ParamName(name): delta for name, delta in (dense or {}).items()}
        return Adapter({module.name: module for module in modules}, deltas, metadata or AdapterMetadata(), "denoiser.")

    return make
