"""Products with the Jacobian of a network's outputs."""

import torch
from refinement_nets import adapter, batch, network, tuned

from lbm_lora.refinement.adjustable import Adjustable
from lbm_lora.refinement.linearized import Linearized


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


def test_probes_estimate_the_squared_columns() -> None:
    running = network()
    adjustable = Adjustable(running, adapter(1))
    learnt = [batch(running, tuned(adapter(0)), (0, 1))]
    linearized = Linearized(adjustable, adjustable.given, learnt, [torch.ones(2)])
    columns = [linearized.times(unit).square().sum() for unit in torch.eye(len(adjustable.given))]
    estimated = linearized.mean_squares(200, seed=0)
    assert abs(float(estimated.sum() / torch.stack(columns).sum()) - 1) < 0.1
