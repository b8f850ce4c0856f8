"""Rebuild every delta from an adapter as stored and compare it with the checkpoints."""

from collections.abc import Callable

from lbm_lora.adapter import Adapter, Ledger, LedgerRow, Status
from lbm_lora.checkpoint import Pairing, ParamPair
from lbm_lora.factorize import Measure, measure
from lbm_lora.parallel import ordered_map


def compare_weights(pairing: Pairing, adapter: Adapter, *, on_tensor: Callable[[], None] = lambda: None) -> Ledger:
    """One ledger row per tensor of the pairing, a few at a time, in constant memory.

    Args:
        on_tensor: called after each tensor, for a progress bar.

    Raises:
        PairingError: a value of either checkpoint is not finite.
    """
    rows: list[LedgerRow] = []
    for row in ordered_map(lambda pair: _row(pairing, adapter, pair), pairing):
        rows.append(row)
        on_tensor()
    return Ledger(tuple(rows))


def _row(pairing: Pairing, adapter: Adapter, pair: ParamPair) -> LedgerRow:
    name, shape = pair.name, pair.tuned.shape
    delta, tuned = pairing.read_delta(name), pairing.tuned.read(name)
    if name in adapter.dense:
        found = measure(delta, adapter.dense[name].float(), tuned)
        return LedgerRow(name, Status.DENSE, "stored whole", shape, None, found)
    module = adapter.module_at(name)
    if module is not None:
        found = measure(delta, module.factors(), tuned)
        return LedgerRow(name, Status.LORA, "conv" if len(shape) == 4 else "linear", shape, module.rank, found)
    found = measure(delta, None, tuned)
    if found.delta_abs == 0:
        return LedgerRow(name, Status.UNCHANGED, "equal in base and tuned", shape, None, found)
    if not pair.tuned.is_floating:  # the change of a counter is no weight's
        return LedgerRow(name, Status.EXCLUDED, "not a floating point tensor", shape, None, Measure())
    return LedgerRow(name, Status.EXCLUDED, "not in the adapter", shape, None, found)
