"""What storing a dense delta costs in the output."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lbm_lora.blocks import energy
from lbm_lora.factorize import MomentAccumulator, Weights
from lbm_lora.ranks import dense_error

Rand = Callable[..., Tensor]


@pytest.mark.parametrize("repeat", [1, 4])
def test_a_dense_deltas_rounding_costs_what_is_expected_of_independent_errors(repeat: int, rand: Rand) -> None:
    inputs, outputs = MomentAccumulator(64, repeat=repeat), MomentAccumulator(300)
    inputs.add(rand(90, 64) * torch.logspace(0, -2, 64))
    outputs.add(rand(400, 300) * torch.logspace(0, -1, 300))
    weights = Weights(inputs=inputs.result(), outputs=outputs.result(), ridge=1e-9, scale=3.0)
    matrix = rand(300, 64 * repeat)
    lost = matrix.bfloat16().float() - matrix
    expected = energy(weights.whitening()(lost))
    assert dense_error(matrix, weights, torch.bfloat16) == pytest.approx(expected, rel=0.05)
    assert dense_error(matrix, Weights(), torch.bfloat16) == pytest.approx(energy(lost), rel=1e-5)


def test_a_value_beyond_the_range_cannot_be_stored() -> None:
    assert dense_error(torch.full((2, 2), 1e6), Weights(), torch.float16) == math.inf
