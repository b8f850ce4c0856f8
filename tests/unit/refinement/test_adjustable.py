"""Vectors and ranks of an adapter as one vector of values."""

import pytest
import torch
from refinement_nets import FIRST, adapter, batch, network, tuned

from lbm_lora.adapter import Adapter
from lbm_lora.errors import AdapterError
from lbm_lora.factorize import quantize
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.refinement.adjustable import Adjustable


def test_the_given_values_are_the_given_adapter() -> None:
    running, given = network(), adapter(1)
    adjustable = Adjustable(running, given)
    sample = batch(running, tuned(given), (0,))
    for found in (adjustable.output(adjustable.split(adjustable.given), sample), adjustable.output_of(given, sample)):
        torch.testing.assert_close(found, sample.wanted, rtol=1e-5, atol=1e-6)
    same = adjustable.adapter(adjustable.given)
    assert all(torch.equal(same.dense[name], delta) for name, delta in given.dense.items())
    assert all(torch.equal(same.modules[name].up, module.up) for name, module in given.modules.items())


def test_the_adapter_of_changed_values_gives_their_outputs() -> None:
    running = network()
    adjustable = Adjustable(running, adapter(1))
    sample = batch(running, running, (0,))
    changed = adjustable.given + 0.1 * torch.randn(adjustable.given.shape, generator=torch.Generator().manual_seed(0))
    made = adjustable.adapter(changed)
    found = adjustable.output(adjustable.split(changed), sample)
    torch.testing.assert_close(adjustable.output_of(made, sample), found, rtol=1e-5, atol=1e-6)


def test_a_factor_of_a_rank_leaves_its_integers_in_8_bits() -> None:
    given = adapter(1).cast(torch.int8)
    adjustable = Adjustable(network(), given)
    values = adjustable.given.clone()
    values[-4:] = torch.tensor([1.0371, 0.9113, 1.2, 0.333])  # the ranks come last
    scaled = adjustable.adapter(values)
    for name, module in given.modules.items():
        before, after = (
            quantize(factors.up, factors.down) for factors in (module.factors(), scaled.modules[name].factors())
        )
        assert torch.equal(after.up, before.up)
        assert torch.equal(after.down, before.down)
        assert not torch.equal(after.unit, before.unit)


def test_dense_matrices_stay_as_they_are() -> None:
    running, given = network(), adapter(1)
    matrix = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(3))
    modules = {name: module for name, module in given.modules.items() if name != FIRST}
    mixed = Adapter(modules, {**given.dense, ParamName("0.weight"): matrix})
    adjustable = Adjustable(running, mixed)
    sample = batch(running, tuned(mixed), (0,))
    found = adjustable.output(adjustable.split(adjustable.given), sample)
    torch.testing.assert_close(found, sample.wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(adjustable.adapter(adjustable.given + 1).dense[ParamName("0.weight")], matrix)


def test_an_adapter_of_another_network_is_refused() -> None:
    given = adapter(1)
    strange = Adapter({ModuleName("other"): given.modules[FIRST]}, {})
    with pytest.raises(AdapterError, match="none of its 1 parameters are in the model"):
        Adjustable(network(), strange)
