"""The numbers of a report, against the same ones worked out by hand: weights, then outputs."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, Ledger, LedgerRow, LoraModule, Status, load_adapter, save_adapter
from lbm_lora.checkpoint import Pairing, open_checkpoint, pair
from lbm_lora.factorize import Measure
from lbm_lora.fidelity.outputs import (
    DenoiserScore,
    ImageComparison,
    ImageScore,
    OutputComparison,
    VariantScores,
    summarize,
    worst_first,
)
from lbm_lora.fidelity.weights import (
    WeightReport,
    block_order,
    compare_weights,
    ledger_entries,
    network_order,
    weight_report,
)
from lbm_lora.naming import ModuleName, ParamName
from smallnet import extract_files, small_state


def ledger_row(name: str, status: Status, measure: Measure, rank: int | None = None, reason: str = "r") -> LedgerRow:
    return LedgerRow(ParamName(name), status, reason, (2, 2), rank, measure)


def measured(delta_sq: float, error_sq: float, delta_abs: float, error_abs: float, noise_sq: float = 0) -> Measure:
    return Measure(
        numel=4,
        delta_sq=float(delta_sq),
        error_sq=float(error_sq),
        delta_abs=float(delta_abs),
        error_abs=float(error_abs),
        noise_sq=float(noise_sq),
    )


LEDGER = Ledger(
    (
        ledger_row(
            "down_blocks.0.a.weight", Status.LORA, measured(16, 0.01, 8, 0.002), 4, "linear"
        ),  # relative error 0.025
        ledger_row("down_blocks.0.b.weight", Status.LORA, measured(4, 0.04, 4, 0.4), 2, "linear"),  # 0.1
        ledger_row("mid_block.c.weight", Status.LORA, measured(1, 4, 2, 4, 0.25), 1, "conv"),  # 2
        ledger_row("mid_block.c.bias", Status.DENSE, measured(9, 0, 6, 0)),
        ledger_row("conv_out.weight", Status.EXCLUDED, measured(10, 10, 10, 10), None, "in --exclude"),
        ledger_row("conv_out.bias", Status.UNCHANGED, measured(0, 0, 0, 0)),
    )
)


@pytest.fixture
def by_hand() -> WeightReport:
    return weight_report(LEDGER, base="b", tuned="t", adapter="a", failed=[ParamName("x.weight")])


def test_errors(by_hand: WeightReport) -> None:
    assert by_hand.relative_error == pytest.approx(math.sqrt(14.05 / 40))
    assert by_hand.lora_error == pytest.approx(math.sqrt(4.05 / 21))
    assert by_hand.mean_module_error == pytest.approx((0.025 + 0.1 + 2) / 3)
    assert by_hand.mean_error == pytest.approx((0.0005 + 0.1 + 1) / 3)
    assert by_hand.mean_relative_mean_error == pytest.approx((0.00025 + 0.1 + 2) / 3)
    assert by_hand.left_out_share == pytest.approx(10 / 40)
    assert by_hand.noise_floor == pytest.approx(math.sqrt(0.25 / 40))
    assert by_hand.perfect == 1


def test_blocks_come_in_order_and_their_shares_add_up(by_hand: WeightReport) -> None:
    assert [(block.block, block.tensors) for block in by_hand.blocks] == [
        ("down_blocks.0", 2),
        ("mid_block", 2),
        ("conv_out", 2),
    ]
    assert [block.delta_share for block in by_hand.blocks] == pytest.approx([0.5, 0.25, 0.25])
    assert [block.error_share for block in by_hand.blocks] == pytest.approx([0.05 / 14.05, 4 / 14.05, 10 / 14.05])
    assert [block.relative_error for block in by_hand.blocks] == pytest.approx([0.05, math.sqrt(0.4), 1.0])
    assert by_hand.blocks[0].relative_error == pytest.approx(math.sqrt(0.05 / 20))


def test_infinite_errors() -> None:
    rows = (
        *LEDGER.rows,
        ledger_row("x.weight", Status.LORA, measured(0, 1, 0, 1), 1),
        ledger_row("y.weight", Status.LORA, measured(1, math.inf, 1, math.inf), 1),
    )
    broken = weight_report(Ledger(rows), base="b", tuned="t", adapter="a")
    assert broken.relative_error == math.inf
    assert [found.relative_error for found in broken.rows[-2:]] == [math.inf, math.inf]
    assert math.isnan(broken.rows[-1].error_share)
    assert broken.bands == {"excellent": 1, "good": 1, "poor": 0, "noise": 3}


Save = Callable[[str, Mapping[str, Tensor]], Path]


@pytest.fixture
def pairing(save: Save) -> Callable[..., Pairing]:
    def build(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> Pairing:
        paths = save("base.safetensors", base), save("tuned.safetensors", tuned)
        first, second = (open_checkpoint(path).component() for path in paths)
        return pair(first, second)

    return build


@pytest.mark.parametrize("dtype", [torch.bfloat16])
@pytest.mark.parametrize("prefix", ["denoiser."])
def test_the_ledger_of_the_file_is_the_ledger_of_its_extraction(
    save: Save, pairing: Callable[..., Pairing], tmp_path: Path, prefix: str, dtype: torch.dtype
) -> None:
    base, tuned = small_state(1, prefix), small_state(2, prefix)
    tuned[f"{prefix}norm.bias"] = base[f"{prefix}norm.bias"]
    both = pairing(base, tuned)
    extracted = extract_files(
        tmp_path / "base.safetensors", tmp_path / "tuned.safetensors", exclude=("head",), dtype=dtype
    )
    save_adapter(extracted.adapter, tmp_path / "lora.safetensors")
    found = compare_weights(both, load_adapter(tmp_path / "lora.safetensors"))
    assert len(found) == len(base)
    for row, expected in zip(found, extracted.ledger, strict=True):
        assert (row.name, row.status, row.shape, row.rank) == (
            expected.name,
            expected.status,
            expected.shape,
            expected.rank,
        )
        assert asdict(row.measure) == pytest.approx(asdict(expected.measure), rel=1e-5, abs=1e-12)
    reasons = {str(row.name): row.reason for row in found}
    assert reasons["head.0.weight"] == "not in the adapter"
    assert reasons["bn1.num_batches_tracked"] == "not a floating point tensor"
    assert reasons["norm.bias"] == "equal in base and tuned"
    assert (reasons["stem.weight"], reasons["bn1.bias"]) == ("conv", "stored dense")


def test_numbers_by_hand(pairing: Callable[..., Pairing]) -> None:
    base = {"a.weight": torch.zeros(2, 2), "b.weight": torch.zeros(2), "c.bias": torch.zeros(2)}
    tuned = {
        "a.weight": torch.tensor([[3.0, 0], [0, 4]]),
        "b.weight": torch.tensor([1.0, 0]),
        "c.bias": torch.tensor([0, 2.0]),
    }
    up, down = torch.tensor([[1.0], [0.0]]), torch.tensor([[3.0, 0.0]])
    module = LoraModule(ModuleName("a"), down, up, 1.0)
    adapter = Adapter({module.name: module}, {ParamName("b.weight"): torch.tensor([1.0, 0.5])})
    ledger = compare_weights(pairing(base, tuned), adapter)
    rows = {row.name: row for row in ledger}
    assert rows[ParamName("a.weight")].status is Status.LORA
    assert rows[ParamName("a.weight")].rank == 1
    assert rows[ParamName("a.weight")].measure == Measure(
        numel=4, delta_sq=25.0, error_sq=16.0, delta_abs=7.0, error_abs=4.0
    )
    assert rows[ParamName("b.weight")].status is Status.DENSE
    assert rows[ParamName("b.weight")].measure.error_sq == 0.25
    assert rows[ParamName("c.bias")].status is Status.EXCLUDED
    report = weight_report(ledger, base="b", tuned="t", adapter="a")
    assert report.relative_error == pytest.approx(((16 + 0.25 + 4) / 30) ** 0.5)
    assert report.left_out_share == pytest.approx(4 / 30)


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


Build = Callable[..., WeightReport]
Row = Callable[..., LedgerRow]


def test_ledger_entries_add_up(weights: WeightReport) -> None:
    entries = ledger_entries(weights)
    assert [entry.status for entry in entries] == ["lora", "dense", "unchanged", "excluded"]
    assert sum(entry.tensors for entry in entries) == weights.tensors
    assert sum(entry.change_share for entry in entries) == pytest.approx(1)
    assert sum(entry.error_share for entry in entries) == pytest.approx(1)
    assert entries[0].details == ("linear: 2", "conv: 1")
    assert entries[3].details == ("in --exclude: 1",)
    assert entries[3].change_share == pytest.approx(weights.left_out_share)


def test_a_unet_is_ordered_as_its_input_flows(build: Build, row: Row) -> None:
    names = ["conv_in.bias", "conv_out.bias", "down_blocks.0.a.bias", "time_embedding.b.bias", "up_blocks.1.a.bias"]
    report = build(*(row(name, Status.DENSE, (4,), error=0) for name in names))
    assert [r.name for r in network_order(report.rows)] == [names[i] for i in (3, 0, 2, 4, 1)]
    assert block_order(report.rows) == ["time_embedding", "conv_in", "down_blocks.0", "up_blocks.1", "conv_out"]
