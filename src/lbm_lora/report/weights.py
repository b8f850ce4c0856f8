"""Rebuild every delta from an adapter as stored and compare it with the checkpoints."""

from collections.abc import Callable

import torch

from lbm_lora.adapter import Adapter, Ledger, LedgerRow, Status
from lbm_lora.checkpoint import Pairing, ParamPair
from lbm_lora.factorize import Measure, measure
from lbm_lora.naming import module_of


def compare_weights(pairing: Pairing, adapter: Adapter, *, on_tensor: Callable[[], None] = lambda: None) -> Ledger:
    """One ledger row per tensor of the pairing, measured one after the other in constant memory.

    Args:
        on_tensor: called after each tensor, for a progress bar.

    Raises:
        PairingError: a value of either checkpoint is not finite.
    """
    rows: list[LedgerRow] = []
    for pair in pairing:
        rows.append(_row(pairing, adapter, pair))
        on_tensor()
    return Ledger(tuple(rows))


def _row(pairing: Pairing, adapter: Adapter, pair: ParamPair) -> LedgerRow:
    name = pair.name
    delta = pairing.read_delta(name)
    approximation = adapter.delta(name)
    if approximation is not None and not torch.isfinite(approximation.sum()):
        approximation = torch.full_like(delta, torch.inf)  # a broken adapter is reported, not passed over
    found = measure(delta, approximation, pairing.tuned.read(name))
    shape = tuple(delta.shape)
    if name in adapter.dense:
        return LedgerRow(name, Status.DENSE, "stored whole", shape, None, found)
    if approximation is not None:
        rank = adapter.modules[module_of(name)].rank
        return LedgerRow(name, Status.LORA, "conv" if len(shape) == 4 else "linear", shape, rank, found)
    if found.delta_sq == 0:
        return LedgerRow(name, Status.UNCHANGED, "equal in base and tuned", shape, None, found)
    if not pair.tuned.is_floating:  # the change of a counter is no weight's
        return LedgerRow(name, Status.EXCLUDED, "not a floating point tensor", shape, None, Measure())
    return LedgerRow(name, Status.EXCLUDED, "not in the adapter", shape, None, found)
