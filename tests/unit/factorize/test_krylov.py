"""First rounds in bf16: used where they pay, and never where they cost accuracy."""

# pyright: reportPrivateUsage=false

import math

import pytest
import torch
from torch import Tensor

from lbm_lora.factorize import krylov
from lbm_lora.factorize.krylov import leading_subspace, multiplies_bf16
from spectra import SPECTRA, bound_of, matrix_with

CPU = torch.device("cpu")
RANK = 16


class Counted(krylov._Products):
    """Products that are counted by dtype."""

    counts: dict[torch.dtype, int]

    def across(self, basis: Tensor) -> Tensor:
        self.counts[self._matrix.dtype] = self.counts.get(self._matrix.dtype, 0) + 1
        return super().across(basis)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> dict[torch.dtype, int]:
    """Rounds by dtype, on a processor that multiplies bf16."""
    monkeypatch.setattr(krylov, "multiplies_bf16", lambda _: True)
    monkeypatch.setattr(krylov, "_Products", Counted)
    Counted.counts = {}
    return Counted.counts


def error_of(matrix: Tensor, rank: int = RANK) -> float:
    """||matrix - its projection on what was found||."""
    squared_norm = float(matrix.double().square().sum())
    found = leading_subspace(matrix, rank, seed=3, squared_norm=squared_norm)
    assert found is not None
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    torch.testing.assert_close(found.product, wide @ found.rows.mT, rtol=0, atol=1e-5 * math.sqrt(squared_norm))
    rows = found.rows.double()
    return float((wide.double() - (wide.double() @ rows.mT) @ rows).norm())


@pytest.mark.parametrize("shape", [(256, 320), (400, 256)])
def test_a_large_error_needs_no_fp32_rounds(shape: tuple[int, int], counts: dict[torch.dtype, int]) -> None:
    matrix = matrix_with(*shape, SPECTRA["power 0.5"])
    assert error_of(matrix) <= bound_of(matrix, RANK)
    assert set(counts) == {torch.bfloat16}


@pytest.mark.parametrize("name", ["rank 8 and noise", "a faint tail", "power 2", "exponential"])
def test_a_small_error_is_found_in_fp32(name: str, counts: dict[torch.dtype, int]) -> None:
    """What bf16 rounds away would be most of such an error."""
    matrix = matrix_with(256, 320, SPECTRA[name])
    assert error_of(matrix) <= bound_of(matrix, RANK)
    assert counts[torch.float32] >= 4


@pytest.mark.parametrize("name", ["rank 8", "rank 8 and noise", "a faint tail"])
@pytest.mark.parametrize("has_bf16", [False, True])
def test_rounding_errors_are_no_reason_to_give_up(name: str, has_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """They depend on the processor: other starts stand for other processors."""
    monkeypatch.setattr(krylov, "multiplies_bf16", lambda _: has_bf16)
    for shape in [(256, 320), (400, 256)]:
        matrix = matrix_with(*shape, SPECTRA[name])
        squared_norm = float(matrix.double().square().sum())
        found = [leading_subspace(matrix, RANK, seed=seed, squared_norm=squared_norm) for seed in range(12)]
        assert None not in found


def test_without_that_rule_small_errors_would_be_missed(
    monkeypatch: pytest.MonkeyPatch, counts: dict[torch.dtype, int]
) -> None:
    """The gain of the last product alone does not see all of what bf16 loses."""
    matrix = matrix_with(640, 2560, lambda i: (i <= 8) + torch.full_like(i, 3e-3))
    optimum = float(torch.linalg.svdvals(matrix.double())[RANK:].norm())
    assert error_of(matrix) <= 1.0001 * optimum
    assert counts[torch.float32] >= 4
    counts.clear()
    monkeypatch.setattr(krylov, "_BF16_FROM", 0.0)
    assert error_of(matrix) > 1.001 * optimum
    assert set(counts) == {torch.bfloat16}


def test_bf16_is_for_processors_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def processor(**features: bool) -> bool:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
        return multiplies_bf16(CPU)

    assert processor(avx512_bf16=True)
    assert processor(avx512_bf16=False, amx_bf16=True)
    assert not processor(avx512_bf16=False, avx2=True)
    assert not processor()
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # torch before 2.8
    assert not multiplies_bf16(CPU)
    assert not multiplies_bf16(torch.device("cuda"))
