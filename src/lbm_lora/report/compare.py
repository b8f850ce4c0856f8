"""Rebuild every delta from an adapter as stored, and compare it with the checkpoints."""

from collections.abc import Callable
from pathlib import Path

from lbm_lora.adapter import Adapter, Ledger, LedgerRow, Status
from lbm_lora.blocks import Workspace
from lbm_lora.checkpoint import FingerprintBuilder, Pairing, ParamPair
from lbm_lora.factorize import Measure, measure_delta, with_error
from lbm_lora.parallel import ordered_map


def compare_weights(
    pairing: Pairing,
    adapter: Adapter,
    *,
    base: FingerprintBuilder | None = None,
    on_tensor: Callable[[], None] = lambda: None,
) -> Ledger:
    """One ledger row per tensor of the pairing, a few at a time, in constant memory.

    Args:
        base: takes the digests of the base's tensors, which are at hand.
        on_tensor: called after each tensor, for a progress bar.

    Raises:
        PairingError: a value of either checkpoint is not finite.
    """
    rows: list[LedgerRow] = []
    workspace = Workspace()

    def compare(pair: ParamPair) -> LedgerRow:
        if base is not None:
            base.add(pair.name, pairing.base.read(pair.name))
        return _row(pairing, adapter, pair, workspace)

    for row in ordered_map(compare, pairing):
        rows.append(row)
        on_tensor()
    return Ledger(tuple(rows))


def file_labels(base: Path, tuned: Path) -> tuple[str, str]:
    """Names of base and tuned for the reader: of the files, with their folders only where the files are namesakes."""
    if base.name != tuned.name:
        return base.name, tuned.name
    return f"{base.parent.name}/{base.name}", f"{tuned.parent.name}/{tuned.name}"


def _row(pairing: Pairing, adapter: Adapter, pair: ParamPair, workspace: Workspace) -> LedgerRow:
    name, shape = pair.name, pair.tuned.shape
    delta, sums = pairing.read_delta(name, workspace)
    found = measure_delta(delta.numel(), sums)
    if name in adapter.dense:
        measured = with_error(found, delta, adapter.dense[name].float())
        return LedgerRow(name, Status.DENSE, "stored dense", shape, None, measured)
    module = adapter.module_at(name)
    if module is not None:
        kind = "conv" if len(shape) == 4 else "linear"
        return LedgerRow(name, Status.LORA, kind, shape, module.rank, with_error(found, delta, module.factors()))
    if found.delta_abs == 0:
        return LedgerRow(name, Status.UNCHANGED, "equal in base and tuned", shape, None, found)
    if not pair.tuned.is_floating:  # a counter is not a weight
        return LedgerRow(name, Status.EXCLUDED, "not a floating point tensor", shape, None, Measure())
    return LedgerRow(name, Status.EXCLUDED, "not in the adapter", shape, None, found)
