"""Statistics that know less: what stays and what goes."""

from dataclasses import replace

import pytest
import torch

from benchmarks.fidelity.statistics import REDUCED, inputs_alone, one_number
from lbm_lora.calibration import CalledLayer, Origin, Statistics
from lbm_lora.factorize import Moment
from lbm_lora.naming import ModuleName

A, B = ModuleName("a"), ModuleName("b")
"""Two layers that get one tensor."""


def moment(size: int, seed: int) -> Moment:
    rows = torch.randn(3 * size, size, generator=torch.Generator().manual_seed(seed))
    return Moment(dense=rows.mT @ rows)


@pytest.fixture
def statistics() -> Statistics:
    origin = Origin(
        tuned="t",
        images="i",
        count=64,
        schedule=((1000.0, 1.0),),
        probes=1,
        size=None,
        seed=0,
        dense_up_to=8,
        sketch_rank=4,
        dtype="float32",
    )
    return Statistics(
        layers={A: CalledLayer(shape=(4, 6), inputs=A), B: CalledLayer(shape=(5, 6), inputs=A)},
        inputs={A: moment(6, 0)},
        outputs={A: moment(4, 1), B: moment(5, 2)},
        gradients={A: 3.0, B: 0.1},
        output_values=256.0,
        output_energy=100.0,
        origin=origin,
    )


def test_one_number_keeps_how_much_a_layer_counts(statistics: Statistics) -> None:
    found = one_number(statistics)
    for name in (A, B):
        assert found.outputs[name].trace == pytest.approx(statistics.outputs[name].trace)
        variances = found.outputs[name].variances()
        assert torch.equal(variances, variances[:1].expand_as(variances))
        assert found[name].scale == pytest.approx(statistics[name].scale)
    assert found.inputs[A] is statistics.inputs[A]


def test_inputs_alone_count_every_output_the_same(statistics: Statistics) -> None:
    found = inputs_alone(statistics)
    for name in (A, B):
        assert found[name].scale == pytest.approx(1.0)
        assert torch.equal(found.outputs[name].variances(), torch.ones(statistics.layers[name].shape[0]).double())
    assert found.inputs[A] is statistics.inputs[A]


def test_an_input_that_repeats_counts_as_often(statistics: Statistics) -> None:
    """The columns of a conv's matrix are its input channels, once for each place of the kernel."""
    conv = replace(statistics, layers={A: CalledLayer(shape=(4, 6, 3, 3), inputs=A)}, outputs={A: moment(4, 1)})
    assert inputs_alone(conv)[A].scale == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["diagonal_inputs", "diagonal_outputs", "diagonal"])
def test_a_diagonal_is_that_of_the_dense_moment(statistics: Statistics, name: str) -> None:
    found = REDUCED[name](statistics)
    sides = {"inputs": (found.inputs, statistics.inputs), "outputs": (found.outputs, statistics.outputs)}
    for side, (moments, dense) in sides.items():
        for layer, one in moments.items():
            assert (one.dense is None) is (name in ("diagonal", f"diagonal_{side}"))
            assert torch.allclose(one.variances(), dense[layer].variances(), rtol=1e-6)
