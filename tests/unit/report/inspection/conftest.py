"""LoRAs made by hand, whose norms and spectra are known."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, AdapterMetadata, LoraModule
from lbm_lora.naming import ModuleName, ParamName


def module_of_spectrum(name: str, values: list[float], shape: tuple[int, int] = (6, 5), alpha: float = 0) -> LoraModule:
    """A linear lora module with these singular values, at scaling 1 unless `alpha` is given."""
    rank = len(values)
    generator = torch.Generator().manual_seed(len(name))
    left, _ = torch.linalg.qr(torch.randn(shape[0], rank, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(shape[1], rank, generator=generator))
    return LoraModule(ModuleName(name), right.mT, left * torch.tensor(values), alpha or float(rank))


@pytest.fixture
def spectrum() -> Callable[..., LoraModule]:
    """`spectrum("a.proj", [3.0, 1.0])`: see `module_of_spectrum`."""
    return module_of_spectrum


@pytest.fixture
def build() -> Callable[..., Adapter]:
    """`build(module, ..., dense={"a.bias": tensor})`: an adapter of these parts."""

    def make(
        *modules: LoraModule, dense: Mapping[str, Tensor] | None = None, metadata: AdapterMetadata | None = None
    ) -> Adapter:
        deltas = {ParamName(name): delta for name, delta in (dense or {}).items()}
        return Adapter({module.name: module for module in modules}, deltas, metadata or AdapterMetadata(), "denoiser.")

    return make
