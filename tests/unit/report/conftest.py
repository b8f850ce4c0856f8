"""A small report made by hand, whose numbers can be followed."""

from collections.abc import Callable

import pytest

from lbm_lora.adapter import Ledger, LedgerRow, Status
from lbm_lora.factorize import Measure
from lbm_lora.naming import ParamName
from lbm_lora.report import (
    ImageComparison,
    OutputComparison,
    Report,
    VariantScores,
    WeightReport,
    weight_report,
)
from lbm_lora.report.outputs import summarize


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


@pytest.fixture
def outputs() -> OutputComparison:
    """Two pictures: one with a mask, one that the LoRA gives back exactly."""
    images = (
        ImageComparison(
            image="cup.png",
            width=64,
            height=48,
            scores=(
                VariantScores(
                    variant="base", denoiser_error=0.5, psnr=18.25, ssim=0.71239, mask_psnr=15.0, mask_ssim=0.6
                ),
                VariantScores(
                    variant="base + LoRA", denoiser_error=0.04, psnr=40.5, ssim=0.99999, mask_psnr=38.0, mask_ssim=0.98
                ),
            ),
        ),
        ImageComparison(
            image="tree.jpg",
            width=64,
            height=64,
            scores=(
                VariantScores(variant="base", denoiser_error=0.7, psnr=14.0, ssim=0.5),
                VariantScores(variant="base + LoRA", denoiser_error=0.0, psnr="inf", ssim=1.0),
            ),
        ),
    )
    return OutputComparison(
        reference="tuned", steps=1, seed=0, dtype="fp32", device="cpu", images=images, summary=summarize(images)
    )


@pytest.fixture
def report(weights: WeightReport, outputs: OutputComparison) -> Report:
    """Weights, outputs and one note."""
    return Report(weights=weights, outputs=outputs, notes=("The VAEs differ in 3 of 248 tensors.",))
