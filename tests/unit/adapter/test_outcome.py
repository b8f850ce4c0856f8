"""Outcomes on their way into adapters."""

import torch

from lbm_lora.adapter import (
    AdapterBuilder,
    AdapterMetadata,
    LedgerRow,
    LoraModule,
    Outcome,
    Status,
    store_outcomes,
)
from lbm_lora.factorize import Measure
from lbm_lora.naming import ModuleName, ParamName

MODULE = LoraModule(ModuleName("a"), 2 * torch.ones(1, 6), torch.ones(4, 1), 1.0)


def outcome(name: str, status: Status, **stored: object) -> Outcome:
    return Outcome(LedgerRow(ParamName(name), status, "", (4, 6), None, Measure()), **stored)  # pyright: ignore[reportArgumentType]


def test_what_is_stored_is_the_module_or_the_dense_delta() -> None:
    bias = torch.ones(4)
    assert outcome("a.weight", Status.LORA, module=MODULE).stored() == ("a.weight", MODULE)
    name, delta = outcome("a.bias", Status.DENSE, dense=bias).stored()
    assert (name, delta is bias) == ("a.bias", True)
    assert outcome("b", Status.EXCLUDED).stored() == ("b", None)


def test_every_store_gets_its_own_outcomes_and_ledger() -> None:
    stores = [AdapterBuilder("", torch.float32, AdapterMetadata()) for _ in range(2)]
    left_out = outcome("a.weight", Status.EXCLUDED)
    bias = outcome("a.bias", Status.DENSE, dense=torch.ones(4))
    weights = (outcome("a.weight", Status.LORA, module=MODULE), left_out)
    first, second = store_outcomes([weights, (bias, bias)], stores)
    assert [store.adapter().params for store in stores] == [["a.weight", "a.bias"], ["a.bias"]]
    assert [row.status for row in first] == [Status.LORA, Status.DENSE]
    assert [row.status for row in second] == [Status.EXCLUDED, Status.DENSE]
