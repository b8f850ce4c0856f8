"""Factors of LyCORIS' parametrisations against the matrices that its formulas give."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lbm_lora.adapter.formats.rebuild import loha, lokr, up_and_down, with_mid
from lbm_lora.errors import InputError
from lbm_lora.factorize import Factors

SIZES = st.integers(1, 4)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def matrix_of(found: Factors | Tensor) -> Tensor:
    return found if isinstance(found, Tensor) else found.product()


@given(SIZES, SIZES, SIZES, SIZES, SIZES)
def test_mid_is_merged_into_down(out: int, inputs: int, rank: int, inner: int, kernel: int) -> None:
    up, mid, down = normal(out, rank, 1, 1), normal(rank, inner, kernel, kernel), normal(inner, inputs, 1, 1)
    expected = torch.einsum("om,mnkl,ni->oikl", up[..., 0, 0], mid, down[..., 0, 0])
    found = torch.einsum("om,mikl->oikl", up[..., 0, 0], with_mid(mid, down))
    torch.testing.assert_close(found, expected)


@given(SIZES, SIZES, SIZES, SIZES, st.booleans())
def test_loha(out: int, inputs: int, rank: int, kernel: int, tucker: bool) -> None:
    if tucker:
        parts = {f"hada_w{n}_a": normal(rank, out) + n for n in (1, 2)}
        parts |= {f"hada_w{n}_b": normal(rank, inputs) * n for n in (1, 2)}
        parts |= {f"hada_t{n}": normal(rank, rank, kernel, kernel) - n for n in (1, 2)}
        one, two = (
            torch.einsum("ijkl,ip,jr->prkl", parts[f"hada_t{n}"], parts[f"hada_w{n}_a"], parts[f"hada_w{n}_b"])
            for n in (1, 2)
        )
    else:
        parts = {f"hada_w{n}_a": normal(out, rank) + n for n in (1, 2)}
        parts |= {f"hada_w{n}_b": normal(rank, inputs) * n for n in (1, 2)}
        one, two = (parts[f"hada_w{n}_a"] @ parts[f"hada_w{n}_b"] for n in (1, 2))
    found = loha(parts)
    assert isinstance(found, Tensor) or found.rank == rank * rank
    torch.testing.assert_close(matrix_of(found), (one * two).flatten(1), rtol=1e-4, atol=1e-4)


@given(SIZES, SIZES, SIZES, SIZES, st.sampled_from([1, 3]), st.sampled_from(["full", "one", "both", "tucker"]))
def test_lokr(a: int, b: int, c: int, d: int, kernel: int, kind: str) -> None:
    first, second = {"lokr_w1": normal(a, b)}, {"lokr_w2": normal(c, d, kernel, kernel)}
    one, two = first["lokr_w1"], second["lokr_w2"]
    if kind == "both":
        first = {"lokr_w1_a": normal(a, 2), "lokr_w1_b": normal(2, b)}
        one = first["lokr_w1_a"] @ first["lokr_w1_b"]
    if kind in ("one", "both"):
        second = {"lokr_w2_a": normal(c, 2), "lokr_w2_b": normal(2, d * kernel * kernel)}
        two = (second["lokr_w2_a"] @ second["lokr_w2_b"]).reshape(c, d, kernel, kernel)
    if kind == "tucker":
        second = {"lokr_t2": normal(2, 2, kernel, kernel), "lokr_w2_a": normal(2, c), "lokr_w2_b": normal(2, d)}
        two = torch.einsum("ijkl,ip,jr->prkl", second["lokr_t2"], second["lokr_w2_a"], second["lokr_w2_b"])
    expected = torch.kron(one[:, :, None, None], two.contiguous())
    torch.testing.assert_close(matrix_of(lokr(first | second)), expected.flatten(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (3, 2, 3, 3), (9, 1, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dense_delta_is_exact_as_factors(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    delta = normal(*shape).to(dtype)
    up, down = up_and_down(delta)
    assert (up.dtype, down.dtype) == (dtype, dtype)
    assert up.shape == (shape[0], down.shape[0], *(1 for _ in shape[2:]))
    assert down.shape[1:] == shape[1:]
    assert torch.equal((up.flatten(1) @ down.flatten(1)).reshape(shape), delta)


MISFITS = "are incomplete or do not fit together."


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            {"w1": (2**10, 2**10), "w2": (2**5, 2**5)},
            "make a matrix of 32,768 x 32,768. The limit is 268,435,456 values.",
        ),
        (
            {"w1_a": (2**20, 1), "w1_b": (1, 1), "w2_a": (2**20, 1), "w2_b": (1, 1)},
            "make a matrix of 1,099,511,627,776 x 1.",
        ),
        ({"w1": (0, 0), "w2": (0, 0)}, MISFITS),
        ({"w1": (3,), "w2": (2, 2)}, MISFITS),
        ({"w1": (2, 2)}, MISFITS),
        ({"w1": (2, 2), "w2_a": (2, 2), "w2_b": (3, 2)}, MISFITS),
        ({"w1": (2, 2), "w2_a": (2, 2), "w2_b": (2, 2), "t2": (2, 3, 1, 1)}, MISFITS),
        ({"w1": (2, 2), "w2_a": (2, 2), "w2_b": (2, 2), "t2": (2,)}, MISFITS),
    ],
)
def test_lokr_that_is_too_large_or_does_not_fit(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    """Expanded tensors take no memory."""
    with pytest.raises(InputError) as error:
        lokr({f"lokr_{name}": torch.ones(()).expand(shape) for name, shape in shapes.items()})
    assert str(error.value).startswith(message)
