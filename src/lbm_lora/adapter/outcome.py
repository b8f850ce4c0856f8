"""The outcome for each tensor, stored in files or in adapters in memory."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from lbm_lora.adapter.builder import AdapterBuilder
from lbm_lora.adapter.ledger import Ledger, LedgerRow
from lbm_lora.adapter.module import LoraModule, StoredDelta
from lbm_lora.adapter.writers import AdapterWriter, PackedWriter
from lbm_lora.factorize import Grid
from lbm_lora.progress import SILENT, Progress


@dataclass(frozen=True)
class Outcome:
    """Outcome for one tensor: its ledger row, and its lora module or dense delta if it is stored. In a packed file the
    dense delta has a grid."""

    row: LedgerRow
    module: LoraModule | None = None
    dense: Tensor | None = None
    grid: Grid | None = None

    def stored(self) -> StoredDelta:
        """Return what is stored for the param."""
        return self.row.name, self.dense if self.module is None else self.module


def store_outcomes(
    outcomes: Iterable[Sequence[Outcome]],
    stores: Sequence[AdapterWriter | PackedWriter | AdapterBuilder],
    progress: Progress = SILENT,
) -> list[Ledger]:
    """Add the outcomes of every tensor, one for each store, and return the ledger of each store."""
    rows: list[list[LedgerRow]] = [[] for _ in stores]
    for several in outcomes:
        for store, outcome, kept in zip(stores, several, rows, strict=True):
            if outcome.module is not None:
                store.add_module(outcome.module)
            if outcome.dense is not None:
                store.add_dense(outcome.row.name, outcome.dense, outcome.grid)
            kept.append(outcome.row)
        progress.advance()
    return [Ledger(tuple(kept)) for kept in rows]
