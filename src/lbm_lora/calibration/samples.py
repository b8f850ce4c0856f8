"""Measure one sample after the other, of any network, and turn the sums into statistics."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from lbm_lora.calibration.hooks import measure
from lbm_lora.calibration.layers import CalledLayer, unmeasured
from lbm_lora.calibration.statistics import Origin, Statistics
from lbm_lora.calibration.sums import Sums
from lbm_lora.errors import InputError
from lbm_lora.factorize import Moment, MomentAccumulator
from lbm_lora.fidelity.points import generator
from lbm_lora.naming import ModuleName, ParamName


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One run of a network.

    Attributes:
        forward: runs the network and returns its output, with its graph.
        weight: weight in the sums.
        key: seed of its probes, with their number.
        label: what messages call its output.
    """

    forward: Callable[[], Tensor]
    weight: float
    key: tuple[object, ...]
    label: str


def add_sample(
    network: nn.Module, layers: Mapping[ModuleName, CalledLayer], sample: Sample, probes: int, sums: Sums
) -> None:
    """Measure one sample.

    Args:
        probes: number of random directions of its output.

    Raises:
        InputError: the output is not finite.
    """
    draws = [generator(*sample.key, "probe", probe) for probe in range(probes)]
    signs = [partial(random_signs, draw=draw) for draw in draws]
    try:
        measure(network, layers, sample.forward, signs, sample.weight, sums)
    except FloatingPointError:
        raise InputError(
            f"{sample.label} has values that are not finite. Are the weights damaged? In bf16, try float."
        ) from None


def random_signs(shape: Sequence[int], draw: torch.Generator) -> Tensor:
    """Draw a probe of independent signs, which estimate squared norms with the least variance (Hutchinson, 1989)."""
    return torch.randint(0, 2, tuple(shape), generator=draw).float() * 2 - 1


def statistics_of(
    network: nn.Module,
    layers: Mapping[ModuleName, CalledLayer],
    sums: Sums,
    origin: Origin,
    digests: tuple[str, ...] = (),
) -> Statistics:
    """Return the means of sums.

    Args:
        digests: see `Statistics.image_digests`.
    """
    return Statistics(
        layers=layers,
        inputs=_Means(sums.inputs, sums.images),
        outputs=_Means(sums.outputs, sums.images),
        gradients={name: total / sums.images for name, total in sums.gradients.items()},
        vectors=_Means({name: found for name, found in sums.vectors.items() if not found.is_zero}, sums.images),
        output_values=sums.values / sums.images,
        output_energy=sums.energy / sums.images,
        origin=origin,
        image_digests=digests,
        unmeasured=unmeasured(network),
    )


Name = TypeVar("Name", ModuleName, ParamName)


class _Means(Mapping[Name, Moment]):
    """Moments of sums, each computed on access: all at once would double the memory."""

    def __init__(self, sums: Mapping[Name, MomentAccumulator], count: int) -> None:
        self._sums, self._count = sums, count

    def __getitem__(self, name: Name) -> Moment:
        return self._sums[name].result(self._count)

    def __iter__(self) -> Iterator[Name]:
        return iter(self._sums)

    def __len__(self) -> int:
        return len(self._sums)
