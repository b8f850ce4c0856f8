import pytest
import torch

from lbm_lora.errors import ConfigError, InputError
from lbm_lora.factorize import FixedRank, Moment, Weights, weighted_svd
from lbm_lora.naming import ParamName
from lbm_lora.ranks import WidthAllocator, WidthSpectrum, vector_spectrum, width_spectrum


def spectra(count: int = 4) -> list[WidthSpectrum]:
    draw = torch.Generator().manual_seed(0)
    found: list[WidthSpectrum] = []
    for index in range(count):
        matrix = torch.randn(24, 40, generator=draw) * 10.0**-index
        svd = weighted_svd(matrix, 24, Weights().whitening(), seed=0)
        name = ParamName(f"blocks.{index}.weight")
        found.append(width_spectrum(name, (24, 40), matrix, svd, Weights(), Weights().whitening()))
        bias = torch.randn(24, generator=draw)
        found.append(vector_spectrum(ParamName(f"blocks.{index}.bias"), bias, None, is_needed=False))
    return found


def test_files_fill_their_size() -> None:
    allocator = WidthAllocator(spectra(), prefix="", overhead=500)
    errors: list[float] = []
    for size in (1000, 2000, 4000):
        (choice,) = allocator.within([size])
        assert 0.85 * size <= choice.nbytes <= size
        assert set(choice.widths) == {spectrum.name for spectrum in spectra()}
        errors.append(choice.error_sq)
    assert errors == sorted(errors, reverse=True)
    assert allocator.energy_sq > errors[0]


def test_the_smallest_file_with_an_error() -> None:
    allocator = WidthAllocator(spectra(), prefix="", overhead=500)
    found = allocator.error(1e-3 * allocator.energy_sq)
    assert found.error_sq <= 1e-3 * allocator.energy_sq
    with pytest.raises(InputError, match="no bits reach an error this small"):
        allocator.error(1e-30)


def test_a_size_below_everything_is_refused() -> None:
    with pytest.raises(InputError, match="the smallest file takes"):
        WidthAllocator(spectra(), prefix="", overhead=500).within([400])


def test_ranks_that_are_given_have_no_bits_to_choose() -> None:
    allocator = WidthAllocator(spectra(), prefix="", overhead=500)
    for refused in (
        lambda: allocator.fixed(FixedRank()),
        lambda: allocator.energy(0.5),
        lambda: allocator.module_error(1),
    ):
        with pytest.raises(ConfigError, match="Give a size or an error"):
            refused()


def test_a_vector_of_unknown_worth_is_stored_as_precisely_as_possible() -> None:
    needed = vector_spectrum(ParamName("a.bias"), torch.ones(4), None, is_needed=True)
    (choice,) = WidthAllocator([needed], prefix="", overhead=0).within([200])
    assert choice.widths == {"a.bias": (16,)}


def test_a_vector_is_worth_what_its_moment_says() -> None:
    moment = Moment(dense=torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    costs = vector_spectrum(ParamName("a.bias"), torch.tensor([1.0, -0.7]), moment, is_needed=False).costs
    assert costs.errors[0, 0] == pytest.approx(2 + 2 * 0.49 - 1.4)
    assert costs.errors[1, 0] > costs.errors[-1, 0]
