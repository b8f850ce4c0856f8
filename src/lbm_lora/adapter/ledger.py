"""Account for every tensor of a component: what became of its delta, and how well it is preserved."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from lbm_lora.factorize import Measure
from lbm_lora.naming import ParamName


class Status(StrEnum):
    """How the adapter stores a tensor's delta."""

    LORA = "lora"
    DENSE = "dense"
    UNCHANGED = "unchanged"
    EXCLUDED = "excluded"


@dataclass(frozen=True)
class LedgerRow:
    """What became of one tensor.

    Attributes:
        reason: why the tensor has its status, in words.
    """

    name: ParamName
    status: Status
    reason: str
    shape: tuple[int, ...]
    rank: int | None
    measure: Measure


@dataclass(frozen=True)
class Ledger:
    """One row per tensor, in the order of the tuned file."""

    rows: tuple[LedgerRow, ...]

    def counts(self) -> dict[str, int]:
        """Return the number of tensors per status; the values add up to the number of rows."""
        found = Counter(row.status for row in self.rows)
        return {status.value: found[status] for status in Status}

    def excluded_reasons(self) -> dict[str, int]:
        """Return the number of excluded tensors per reason."""
        return dict(Counter(row.reason for row in self.rows if row.status is Status.EXCLUDED))

    def total(self) -> Measure:
        """Return the sums over all rows, including those left out of the file."""
        return sum((row.measure for row in self.rows), start=Measure())

    def highest_ranks(self) -> tuple[int, int]:
        """Return the highest rank of the stored linear layers, and of the conv layers; 0 without any."""
        ranks = {2: 0, 4: 0}
        for row in self.of(Status.LORA):
            ranks[len(row.shape)] = max(ranks[len(row.shape)], row.rank or 0)
        return ranks[2], ranks[4]

    def of(self, *statuses: Status) -> list[LedgerRow]:
        return [row for row in self.rows if row.status in statuses]

    def __iter__(self) -> Iterator[LedgerRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)
