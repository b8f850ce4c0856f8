"""The numbers of a weight report, against the same ones worked out by hand."""

import math

import pytest

from lbm_lora.adapter import Ledger, LedgerRow, Status
from lbm_lora.factorize import Measure
from lbm_lora.naming import ParamName
from lbm_lora.report import WeightReport, weight_report
from lbm_lora.report.weights import block_of


def row(name: str, status: Status, measure: Measure, rank: int | None = None, reason: str = "r") -> LedgerRow:
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
        row("down_blocks.0.a.weight", Status.LORA, measured(16, 0.01, 8, 0.002), 4, "linear"),  # relative error 0.025
        row("down_blocks.0.b.weight", Status.LORA, measured(4, 0.04, 4, 0.4), 2, "linear"),  # 0.1
        row("mid_block.c.weight", Status.LORA, measured(1, 4, 2, 4, 0.25), 1, "conv"),  # 2
        row("mid_block.c.bias", Status.DENSE, measured(9, 0, 6, 0)),
        row("conv_out.weight", Status.EXCLUDED, measured(10, 10, 10, 10), None, "in --exclude"),
        row("conv_out.bias", Status.UNCHANGED, measured(0, 0, 0, 0)),
    )
)


@pytest.fixture
def report() -> WeightReport:
    return weight_report(LEDGER, base="b", tuned="t", adapter="a", failed=[ParamName("x.weight")])


def test_counts(report: WeightReport) -> None:
    assert (report.base, report.tuned, report.adapter, report.tensors) == ("b", "t", "a", 6)
    assert report.counts == {"lora": 3, "dense": 1, "unchanged": 1, "excluded": 1}
    assert sum(report.counts.values()) == report.tensors
    assert report.excluded_reasons == {"in --exclude": 1}
    assert (report.matched, report.failed, report.success_rate) == (3, ("x.weight",), 0.75)


def test_errors(report: WeightReport) -> None:
    assert report.relative_error == pytest.approx(math.sqrt(14.05 / 40))
    assert report.lora_error == pytest.approx(math.sqrt(4.05 / 21))
    assert report.mean_module_error == pytest.approx((0.025 + 0.1 + 2) / 3)
    assert report.mean_error == pytest.approx((0.0005 + 0.1 + 1) / 3)
    assert report.mean_relative_mean_error == pytest.approx((0.00025 + 0.1 + 2) / 3)
    assert report.left_out_share == pytest.approx(10 / 40)
    assert report.noise_floor == pytest.approx(math.sqrt(0.25 / 40))
    assert report.perfect == 1


def test_bands_count_the_lora_modules(report: WeightReport) -> None:
    assert report.bands == {"excellent": 1, "good": 1, "poor": 0, "noise": 1}
    assert report.band == "poor"
    assert (report.best, report.worst) == ("down_blocks.0.a.weight", "mid_block.c.weight")


def test_blocks_come_in_order_and_their_shares_add_up(report: WeightReport) -> None:
    assert [(block.block, block.tensors) for block in report.blocks] == [
        ("down_blocks.0", 2),
        ("mid_block", 2),
        ("conv_out", 2),
    ]
    assert [block.delta_share for block in report.blocks] == pytest.approx([0.5, 0.25, 0.25])
    assert [block.error_share for block in report.blocks] == pytest.approx([0.05 / 14.05, 4 / 14.05, 10 / 14.05])
    assert [block.relative_error for block in report.blocks] == pytest.approx([0.05, math.sqrt(0.4), 1.0])
    assert report.blocks[0].relative_error == pytest.approx(math.sqrt(0.05 / 20))


def test_rows_are_the_ledger(report: WeightReport) -> None:
    assert [found.name for found in report.rows] == [found.name for found in LEDGER]
    first, conv = report.rows[0], report.rows[2]
    assert (first.status, first.reason, first.shape, first.rank) == ("lora", "linear", (2, 2), 4)
    assert (first.delta_norm, first.relative_error, first.mean_error) == (4, pytest.approx(0.025), 0.0005)
    assert conv.noise_floor == 0.5
    assert conv.relative_mean_error == 2
    assert sum(found.error_share for found in report.rows) == pytest.approx(1)


def test_infinite_errors() -> None:
    rows = (
        *LEDGER.rows,
        row("x.weight", Status.LORA, measured(0, 1, 0, 1), 1),
        row("y.weight", Status.LORA, measured(1, math.inf, 1, math.inf), 1),
    )
    broken = weight_report(Ledger(rows), base="b", tuned="t", adapter="a")
    assert broken.relative_error == math.inf
    assert [found.relative_error for found in broken.rows[-2:]] == [math.inf, math.inf]
    assert math.isnan(broken.rows[-1].error_share)
    assert broken.bands == {"excellent": 1, "good": 1, "poor": 0, "noise": 3}


def test_a_file_without_lora_modules() -> None:
    empty = weight_report(Ledger(()), base="b", tuned="t", adapter="a", failed=[ParamName("x")])
    assert (empty.matched, empty.success_rate, empty.relative_error, empty.mean_module_error) == (0, 0, 0, 0)
    assert (empty.best, empty.worst, empty.blocks, empty.left_out_share) == ("", "", (), 0)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("down_blocks.1.attentions.0.proj_in.weight", "down_blocks.1"),
        ("mid_block.resnets.0.conv1.weight", "mid_block"),
        ("conv_in.weight", "conv_in"),
        ("head.0.weight", "head.0"),
        ("num_iterations", "num_iterations"),
    ],
)
def test_the_block_of_a_tensor(name: str, block: str) -> None:
    assert block_of(name) == block
