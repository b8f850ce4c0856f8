"""Matrices above a rank become their best approximation, and the error is that of all deltas."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, AdapterMetadata, LoraModule
from lbm_lora.adapter.limit import limited
from lbm_lora.naming import ModuleName, ParamName

LINEAR, CONV, DENSE = ModuleName("a.linear"), ModuleName("a.conv"), ParamName("a.dense.weight")
BIAS = ParamName("a.linear.bias")


@pytest.fixture
def adapter(rand: Callable[..., Tensor]) -> Adapter:
    """Factors of rank 2 and 6, a dense matrix and a bias."""
    return Adapter(
        {
            LINEAR: LoraModule(LINEAR, rand(2, 8), rand(10, 2), 1.0),
            CONV: LoraModule(CONV, rand(6, 4, 3, 3), rand(12, 6, 1, 1), 3.0),
        },
        {DENSE: rand(9, 7), BIAS: rand(10)},
        AdapterMetadata("1", "base", facts={"lbm_lora_errors": "{}", "note": "kept"}),
        "denoiser.",
    )


def test_what_exceeds_the_rank_is_the_truncated_svd_and_the_rest_is_untouched(adapter: Adapter) -> None:
    found = limited(adapter, 3)
    assert found.reduced == (ParamName("a.conv.weight"), DENSE)
    assert found.adapter.modules[LINEAR] is adapter.modules[LINEAR]
    assert found.adapter.dense == {BIAS: adapter.dense[BIAS]}
    errors, norms = [], []
    for name in adapter.params:
        before, after = adapter.delta(name), found.adapter.delta(name)
        assert before is not None
        assert after is not None
        assert after.shape == before.shape
        errors.append(float((after - before).square().sum()))
        norms.append(float(before.square().sum()))
        if name in found.reduced:
            dropped = torch.linalg.svdvals(before.flatten(1))[3:].square().sum()
            assert errors[-1] == pytest.approx(float(dropped), rel=1e-4)
    assert found.relative_error == pytest.approx((sum(errors) / sum(norms)) ** 0.5, rel=1e-5)
    assert [found.adapter.modules[name].rank for name in (LINEAR, CONV, ModuleName("a.dense"))] == [2, 3, 3]


def test_a_rank_that_nothing_exceeds_but_dense_matrices_keeps_them_exact(adapter: Adapter) -> None:
    found = limited(adapter, 7)
    assert found.reduced == (DENSE,)
    assert found.relative_error == pytest.approx(0, abs=1e-6)
    assert torch.equal(found.adapter.modules[ModuleName("a.dense")].delta(), adapter.dense[DENSE])


def test_factors_in_8_bits_stay_so(adapter: Adapter) -> None:
    found = limited(adapter.cast(torch.int8), 2).adapter
    assert found.dtype == torch.int8
    conv = found.modules[CONV]
    again = conv.cast(torch.int8)
    assert torch.allclose(again.delta(), conv.delta(), atol=1e-5)
