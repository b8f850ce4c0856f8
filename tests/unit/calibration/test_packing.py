"""Moments in two bytes a value, against those that they were made of."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lbm_lora.calibration.packing import pack_moment, unpack_moment
from lbm_lora.checkpoint import TensorSpec
from lbm_lora.factorize import Moment, MomentAccumulator
from spectra import SPECTRA, matrix_with

Rand = Callable[..., Tensor]
FORMS = {"dense": (64, 0), "sketched": (0, 12), "diagonal": (0, 0)}


def moment_of(form: str, spectrum: str = "power 1", scale: float = 1.0) -> Moment:
    dense, sketch = FORMS[form]
    accumulator = MomentAccumulator(40, dense_up_to=dense, sketch_rank=sketch)
    accumulator.add(matrix_with(90, 40, SPECTRA[spectrum]) * scale)
    return accumulator.result()


def again(moment: Moment) -> Moment:
    packed = pack_moment(moment)
    specs = {part: TensorSpec.of(tensor) for part, tensor in packed.items()}
    return unpack_moment(specs, packed.__getitem__, moment.size)


@pytest.mark.parametrize(("spectrum", "scale"), [("exponential", 1e15), ("rank 8", 1e-15)])
@pytest.mark.parametrize("form", FORMS)
def test_what_an_error_costs_is_kept_even_where_it_costs_little(form: str, spectrum: str, scale: float) -> None:
    moment = moment_of(form, spectrum, scale)
    found, ridge = again(moment), 1e-3 * float(moment.variances().mean())
    torch.testing.assert_close(found.variances(), moment.variances(), rtol=1e-5, atol=1e-2 * ridge)
    root = moment.root(1e-3)
    directions = root.solve(torch.linalg.qr(matrix_with(40, 40, SPECTRA["flat"])).Q)  # each costs 1 with the ridge
    for direction in directions:
        wanted, plain = moment.quadratic(direction[None]), ridge * float(direction.square().sum())
        assert found.quadratic(direction[None]) + plain == pytest.approx(wanted + plain, rel=2e-2)  # 1e-5 of the mean


def test_nothing_and_channels_without_values() -> None:
    for form, moment in ((form, moment_of(form, scale=0)) for form in FORMS):
        assert again(moment).trace == 0, form
    rows = matrix_with(90, 40, SPECTRA["power 1"])
    rows[:, 3] = 0
    accumulator = MomentAccumulator(40)
    accumulator.add(rows)
    found = again(accumulator.result())
    assert 0 <= float(found.variances()[3]) <= 2e-6 * float(found.variances().mean())


def test_moments_of_format_1(rand: Rand) -> None:
    """fp32: the upper triangle, or diagonal and factor."""
    dense = rand(5, 5)
    dense = dense + dense.mT
    parts = {"triangle": dense[*torch.triu_indices(5, 5)], "diagonal": rand(5).abs(), "factor": rand(5, 2)}
    specs = {part: TensorSpec.of(tensor) for part, tensor in parts.items()}
    whole = unpack_moment({"triangle": specs.pop("triangle")}, parts.__getitem__, 5)
    assert whole.dense is not None
    assert torch.equal(whole.dense, dense)
    sketch = unpack_moment(specs, parts.__getitem__, 5)
    assert sketch.diagonal is parts["diagonal"]
    assert sketch.factor is parts["factor"]


@pytest.mark.parametrize(
    "tensors",
    [
        {"diagonal": torch.tensor([1.0, -1.0, 1.0])},
        {"diagonal": torch.ones(3, 2)},
        {"diagonal": torch.ones(3), "factor": torch.ones(3)},
        {"diagonal": torch.ones(3), "factor": torch.ones(3, 0)},
        {"diagonal": torch.ones(3), "factor": torch.ones(3, 1, 1)},
        {"diagonal": torch.ones(3), "factor": torch.ones(3, 1), "norms": torch.full((3,), -1.0)},
        {"lower": torch.ones(6).half(), "norms": torch.full((3,), 1e38)},
        {"lower": torch.ones(6, 1).half(), "norms": torch.ones(3)},
    ],
)
def test_what_is_no_moment_is_refused(tensors: dict[str, torch.Tensor]) -> None:
    specs = {key: TensorSpec.of(tensor) for key, tensor in tensors.items()}
    with pytest.raises(ValueError, match=r"shape|below 0|range"):
        unpack_moment(specs, tensors.__getitem__, 3)
