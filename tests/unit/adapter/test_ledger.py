"""The account of every tensor."""

from lbm_lora.adapter import Ledger, LedgerRow, Status
from lbm_lora.factorize import Measure
from lbm_lora.naming import ParamName


def row(name: str, status: Status, reason: str, delta_sq: float, error_sq: float) -> LedgerRow:
    measure = Measure(numel=1, delta_sq=delta_sq, error_sq=error_sq)
    return LedgerRow(ParamName(name), status, reason, (1,), None, measure)


LEDGER = Ledger(
    (
        row("a", Status.LORA, "linear", 4.0, 1.0),
        row("b", Status.EXCLUDED, "in --exclude", 9.0, 9.0),
        row("c", Status.DENSE, "1-dimensional", 1.0, 0.0),
        row("d", Status.UNCHANGED, "equal in base and tuned", 0.0, 0.0),
        row("e", Status.EXCLUDED, "in --exclude", 2.0, 2.0),
        row("f", Status.EXCLUDED, "not a floating point tensor", 0.0, 0.0),
    )
)


def test_counts_add_up_and_name_every_status() -> None:
    assert LEDGER.counts() == {"lora": 1, "dense": 1, "unchanged": 1, "excluded": 3}
    assert sum(LEDGER.counts().values()) == len(LEDGER) == len(list(LEDGER))
    assert Ledger(()).counts() == {"lora": 0, "dense": 0, "unchanged": 0, "excluded": 0}


def test_the_highest_ranks_are_those_of_stored_linear_and_conv_layers() -> None:
    shapes = {"a": ((4, 6), 3), "b": ((4, 6), 5), "c": ((4, 6, 3, 3), 2)}
    rows = [
        LedgerRow(ParamName(name), Status.LORA, "", shape, rank, Measure()) for name, (shape, rank) in shapes.items()
    ]
    assert Ledger(tuple(rows)).highest_ranks() == (5, 2)
    assert LEDGER.of(Status.EXCLUDED)
    assert Ledger(tuple(LEDGER.of(Status.EXCLUDED))).highest_ranks() == (0, 0)
