"""Allocate a packed file's bytes: bits for each rank of each module, and for each dense delta."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lbm_lora.adapter.packed_index import Index
from lbm_lora.errors import ConfigError, InputError, Option
from lbm_lora.factorize import FixedRank, WidthAllocation, WidthCosts, allocate_widths, allocate_widths_for
from lbm_lora.naming import ParamName, module_of
from lbm_lora.ranks.allocate import Choice, megabytes
from lbm_lora.ranks.spectrum import WidthSpectrum

_ROUNDS = 8  # corrections of the bytes of the index, which depends on the choice
_CLOSE = 0.002  # of a file's bytes that may stay unused
_SPARE = 1.002  # of the bytes that a choice has taken, for those of the next one


class WidthAllocator:
    """Choose the bits of every rank and every dense delta from their spectra. It takes the place of `RankAllocator`.

    Args:
        spectra: spectra of all changed deltas.
        prefix: prefix of the component.
        overhead: bytes of the file besides index and data.
        can_leave_out: whether the caller has options that leave tensors out, for messages.
    """

    def __init__(
        self, spectra: Sequence[WidthSpectrum], *, prefix: str, overhead: int, can_leave_out: bool = True
    ) -> None:
        self._spectra, self._prefix, self._overhead = spectra, prefix, overhead
        self._costs = [spectrum.costs for spectrum in spectra]
        self._more = 1.0
        self._can_leave_out = can_leave_out
        self.fixed_bytes = self._choice(allocate_widths(self._costs, 0)).nbytes

    def expect(self, choice: Choice, data_bytes: int) -> None:
        """Expect more bytes of all further choices, by what the data of this one has taken."""
        before, self._more = self._more, self._more * _SPARE * data_bytes / choice.data_bytes
        share = self._more / before
        self._costs = [
            costs if len(spectrum.shape) == 1 else _with_bytes(costs, share)
            for spectrum, costs in zip(self._spectra, self._costs, strict=True)
        ]

    @property
    def energy_sq(self) -> float:
        """Return the squared error of a file without any delta."""
        return sum(float(costs.errors[0].sum()) + costs.rest for costs in self._costs)

    def within(self, nbytes: Sequence[int]) -> list[Choice]:
        """Return the choices with the least error for files of these sizes.

        Raises:
            InputError: a size is too small for what every file contains.
        """
        return [self._within(one) for one in nbytes]

    def error(self, target_sq: float) -> Choice:
        """Return the smallest choice with a squared error of at most `target_sq`.

        Raises:
            InputError: no choice reaches it.
        """
        found = allocate_widths_for(self._costs, target_sq)
        if found.error_sq > target_sq:
            raise InputError(
                f"no bits reach an error this small: the lowest squared error is {found.error_sq:.3g}, {target_sq:.3g} "
                "was requested. Allow a larger error, or store fp32: ",
                Option("save_precision", "float"),
                ".",
            )
        return self._choice(found if _is_something(found) else self._least())

    def fixed(self, ranks: FixedRank) -> Choice:
        """Refuse ranks: which ranks a delta gets is a part of the choice."""
        raise needs_limit()

    def module_error(self, relative_error: float) -> Choice:
        """Refuse a limit for each module, likewise."""
        raise needs_limit()

    def energy(self, share: float) -> Choice:
        """Refuse a limit for each module, likewise."""
        raise needs_limit()

    def _within(self, nbytes: int) -> Choice:
        """Return the choice for a size; the index takes fewer bytes the less there is."""
        budget = nbytes - self.fixed_bytes
        best: Choice | None = None
        for _ in range(_ROUNDS):
            choice = self._choice(allocate_widths(self._costs, max(0, budget)))
            if choice.nbytes <= nbytes and (best is None or choice.error_sq < best.error_sq):
                best = choice
            if best is not None and abs(nbytes - choice.nbytes) <= _CLOSE * nbytes:
                break
            budget += nbytes - choice.nbytes - round(_CLOSE / 4 * nbytes)
        if best is None:
            ways = (", or leave tensors out: ", Option("exclude")) if self._can_leave_out else ()
            raise InputError(
                Option("max_size"),
                f" {megabytes(nbytes)}: the smallest file takes {megabytes(self.fixed_bytes)}. Allow more",
                *ways,
                ".",
            )
        return best

    def _least(self) -> WidthAllocation:
        """Return the smallest choice with anything in it: a file without any delta is none."""
        budget, most = 32, sum(int(costs.nbytes.max()) * costs.errors.shape[1] for costs in self._costs)
        while budget < most and not _is_something(allocate_widths(self._costs, budget)):
            budget *= 2
        return allocate_widths(self._costs, budget)

    def _choice(self, found: WidthAllocation) -> Choice:
        widths: dict[ParamName, tuple[int, ...]] = {}
        ranks: dict[ParamName, int | None] = {}
        for spectrum, chosen, dense in zip(self._spectra, found.widths, found.dense, strict=True):
            widths[spectrum.name] = (dense,) if chosen is None else chosen
            if not spectrum.is_dense:
                ranks[spectrum.name] = None if chosen is None else sum(width > 0 for width in chosen)
        index = self._index(widths, ranks)
        data_bytes = index.expected_bytes(self._more)
        return Choice(
            ranks=ranks,
            nbytes=self._overhead + len(index.encoded()) + data_bytes,
            error_sq=found.error_sq,
            widths=widths,
            data_bytes=data_bytes,
        )

    def _index(self, widths: dict[ParamName, tuple[int, ...]], ranks: dict[ParamName, int | None]) -> Index:
        shapes = {spectrum.name: spectrum.shape for spectrum in self._spectra}

        def is_module(name: ParamName) -> bool:
            return ranks.get(name) is not None

        taken = {name: tuple(width for width in found if width) for name, found in widths.items() if any(found)}
        return Index(
            self._prefix,
            {module_of(name): (shapes[name], bits) for name, bits in taken.items() if is_module(name)},
            {name: (shapes[name], bits[0]) for name, bits in taken.items() if not is_module(name)},
        )


def _with_bytes(costs: WidthCosts, share: float) -> WidthCosts:
    dense = None if costs.dense_bytes is None else np.ceil(share * costs.dense_bytes).astype(np.int64)
    return replace(costs, nbytes=np.ceil(share * costs.nbytes).astype(np.int64), dense_bytes=dense)


def _is_something(found: WidthAllocation) -> bool:
    return any(widths is None or any(widths) for widths in found.widths)


def needs_limit() -> ConfigError:
    return ConfigError(
        Option("save_precision", "auto"),
        " chooses the ranks and their bits together. Give a size or an error: ",
        Option("max_size"),
        ", ",
        Option("max_output_error"),
        " or ",
        Option("min_psnr"),
        ".",
    )
