"""Vectors and ranks of an adapter as one vector of values."""

import torch
from refinement_nets import FIRST, adapter, batch, network, tuned

from lbm_lora.adapter import Adapter
from lbm_lora.factorize import quantize
from lbm_lora.naming import ParamName
from lbm_lora.refinement.adjustable import Adjustable, Linearized


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


def test_products_agree_with_differences_and_with_each_other() -> None:
    running = network()
    adjustable = Adjustable(running, adapter(1))
    learnt = [batch(running, tuned(adapter(0)), seeds) for seeds in ((0, 1), (2, 3))]
    weights = [torch.tensor([0.5, 2.0]), torch.tensor([1.0, 0.1])]
    at = adjustable.given
    linearized = Linearized(adjustable, at, learnt, weights)
    draw = torch.Generator().manual_seed(0)
    vector = torch.randn(at.shape, generator=draw)
    product = linearized.times(vector)
    step = 1e-3
    ahead, behind = (Linearized(adjustable, at + sign * step * vector, learnt, weights).residual for sign in (1, -1))
    torch.testing.assert_close(product, (behind - ahead) / (2 * step), rtol=2e-3, atol=2e-4)
    rows = torch.randn(product.shape, generator=draw)
    torch.testing.assert_close(linearized.transposed(rows) @ vector, rows @ product, rtol=1e-4, atol=1e-4)


def test_the_residual_squares_to_the_weighted_errors() -> None:
    running, target = network(), tuned(adapter(0))
    adjustable = Adjustable(running, adapter(1))
    sample = batch(running, target, (0, 1))
    weights = torch.tensor([0.5, 2.0])
    wanted = sample.wanted
    found = adjustable.output(adjustable.split(adjustable.given), sample)
    errors = (found - wanted).flatten(1).square().sum(1) / wanted.flatten(1).square().sum(1)
    residual = Linearized(adjustable, adjustable.given, [sample], [weights]).residual
    torch.testing.assert_close(residual.square().sum(), (weights * errors).sum())
