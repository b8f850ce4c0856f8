"""Biases, norms and ranks that are fitted together to a network's outputs."""

from dataclasses import replace

import pytest
import torch
from refinement_nets import adapter, batch, network, tuned
from torch import nn

from lbm_lora.adapter import Adapter
from lbm_lora.factorize import quantize
from lbm_lora.fidelity.answers import AnsweredPoint
from lbm_lora.fidelity.points import Point
from lbm_lora.naming import ParamName
from lbm_lora.refinement.adjustable import Sample
from lbm_lora.refinement.joint import JointSettings, refit, spread_points


def disturbed(size: float = 0.05) -> Adapter:
    """Return adapter 0 with other factors, which cannot be fitted back, and its own vectors."""
    true, other = adapter(0), adapter(1)
    modules = {
        name: replace(module, up=module.up + size * other.modules[name].up) for name, module in true.modules.items()
    }
    return replace(true, modules=modules)


def test_biases_and_norms_absorb_an_error_of_the_factors() -> None:
    running, target = network(), tuned(adapter(0))
    found = refit(running, disturbed(), [batch(running, target, range(12))], [batch(running, target, range(12, 18))])
    assert found.step > 0
    assert found.after.typical < 0.8 * found.before.typical
    apart = batch(network(), target, range(20, 26))
    errors = [
        (batch(network(), tuned(one), range(20, 26)).wanted - apart.wanted).norm()
        for one in (found.adapter, disturbed())
    ]
    assert errors[0] < 0.8 * errors[1]
    given = disturbed()
    assert all(torch.equal(found.adapter.modules[name].down, module.down) for name, module in given.modules.items())
    assert not torch.equal(found.adapter.dense[ParamName("1.weight")], given.dense[ParamName("1.weight")])


def test_a_linear_model_is_solved_in_one_step() -> None:
    torch.manual_seed(0)
    running = nn.Linear(4, 3).requires_grad_(requires_grad=False)
    true = {ParamName("bias"): torch.tensor([0.5, -1.0, 2.0])}
    inputs = torch.randn(6, 4)
    sample = Sample(
        run=lambda: running(inputs), wanted=running(inputs) + true[ParamName("bias")], weights=torch.ones(6)
    )
    given = Adapter({}, {ParamName("bias"): torch.zeros(3)})
    settings = JointSettings(steps=1, iterations=4, damping=0.0)
    found = refit(running, given, [sample], [sample], settings)
    assert found.step == 1
    torch.testing.assert_close(found.adapter.dense, true, rtol=1e-5, atol=1e-6)
    assert found.after.typical < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
def test_what_is_kept_is_as_stored_and_never_worse_on_held_inputs(dtype: torch.dtype) -> None:
    running, target = network(), tuned(adapter(0))
    given = disturbed(0.01).cast(dtype)
    held = [batch(running, tuned(adapter(2)), (9,))]  # of another model: what is learnt does not help there
    found = refit(running, given, [batch(running, target, (0,))], held)
    assert found.after.typical <= found.before.typical
    helped = refit(running, given, [batch(running, target, range(12))], [batch(running, target, range(12, 18))])
    assert helped.step > 0
    again = helped.adapter.cast(dtype)
    for name, module in helped.adapter.modules.items():
        assert torch.equal(module.up, again.modules[name].up)
        assert torch.equal(module.down, given.modules[name].down)
    assert all(torch.equal(delta, again.dense[name]) for name, delta in helped.adapter.dense.items())
    if dtype == torch.int8:
        for name, module in helped.adapter.modules.items():
            before = given.modules[name].factors()
            assert torch.equal(
                quantize(module.factors().up, module.factors().down).up, quantize(before.up, before.down).up
            )


def points(images: int) -> list[AnsweredPoint]:
    """Return points at three timesteps, whose states are the number of their image."""
    return [
        AnsweredPoint(
            point=Point(timestep=timestep, probability=1 / 3, state=torch.full((1, 1, 1, 1), float(image))),
            wanted=torch.zeros(1, 1, 1, 1),
        )
        for image in range(images)
        for timestep in (250.0, 500.0, 1000.0)
    ]


def test_more_points_than_images_take_further_timesteps() -> None:
    chosen = spread_points(points(2), 5)
    found = [(int(one.point.state), one.point.timestep) for one in chosen]
    assert found == [(0, 250.0), (1, 500.0), (0, 500.0), (1, 1000.0), (0, 1000.0)]
    assert len({(int(one.point.state), one.point.timestep) for one in spread_points(points(2), 48)}) == 6
