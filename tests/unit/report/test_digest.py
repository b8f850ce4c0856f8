"""What text and HTML derive from a weight report."""

import math
from collections.abc import Callable

import pytest

from lbm_lora.adapter import LedgerRow, Status
from lbm_lora.report import WeightReport
from lbm_lora.report.digest import (
    block_order,
    error_named,
    kind_of,
    ledger_entries,
    network_order,
    rank_summary,
    worst_modules,
)

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


def test_kinds(build: Build, row: Row) -> None:
    report = build(
        row("a.weight", Status.LORA, (4, 4), error=0.1, rank=2),
        row("b.weight", Status.EXCLUDED, (4, 4, 3, 3), error=1),
        row("c.weight", Status.EXCLUDED, (4,), error=1),
        row("d.weight", Status.DENSE, (4, 4), error=0),
        row("e.table", Status.EXCLUDED, (4, 4), error=1),
    )
    assert [kind_of(result) for result in report.rows] == ["linear", "conv", "dense", "dense", "dense"]


def test_ranks_against_their_bound(weights: WeightReport, build: Build, row: Row) -> None:
    found = rank_summary(weights)
    assert str(found) == "2 to 16, median 4; 1 module of 3 at full rank"
    one = build(row("conv.weight", Status.LORA, (4, 320, 3, 3), error=0.1, rank=4))
    assert str(rank_summary(one)) == "4; 1 module of 1 at full rank"
    assert rank_summary(build(row("a.bias", Status.DENSE, (4,), error=0))) is None


def test_worst_first_and_infinity_before_all(build: Build, row: Row) -> None:
    errors = {"a": 0.1, "b": math.inf, "c": 0.3}
    report = build(*(row(f"{n}.weight", Status.LORA, (4, 4), error=e, rank=1) for n, e in errors.items()))
    assert [result.name for result in worst_modules(report, 2)] == ["b.weight", "c.weight"]
    assert error_named(report, "c.weight") == pytest.approx(0.3)
    assert math.isnan(error_named(report, "d.weight"))


def test_a_unet_is_ordered_as_its_input_flows(build: Build, row: Row) -> None:
    names = ["conv_in.bias", "conv_out.bias", "down_blocks.0.a.bias", "time_embedding.b.bias", "up_blocks.1.a.bias"]
    report = build(*(row(name, Status.DENSE, (4,), error=0) for name in names))
    assert [r.name for r in network_order(report.rows)] == [names[i] for i in (3, 0, 2, 4, 1)]
    assert block_order(report.rows) == ["time_embedding", "conv_in", "down_blocks.0", "up_blocks.1", "conv_out"]


def test_another_network_keeps_the_order_of_its_file(build: Build, row: Row) -> None:
    names = ["up_blocks.0.a.bias", "conv_in.bias", "encoder.a.bias"]
    report = build(*(row(name, Status.DENSE, (4,), error=0) for name in names))
    assert [r.name for r in network_order(report.rows)] == names
