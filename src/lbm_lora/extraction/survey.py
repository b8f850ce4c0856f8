"""Survey all deltas: the first of two passes, for ranks that depend on all matrices together or on an output norm.

A survey decomposes every matrix once, up to a highest rank, keeps the vectors in a scratch file, and returns the
spectra, from which the ranks of all adapters are chosen. The second pass (`SurveyedPass`) truncates the vectors to the
chosen ranks, rounds them, and measures them against the deltas.

A size limit lets any delta have several times the mean rank, since nobody knows beforehand which ones need it, and each
rank costs time. Such a survey has levels: all deltas at low ranks first, then again at higher ones those that use what
they have. Deltas that get more ranks leave fewer bytes to all others, so no other delta uses more than before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash

from lbm_lora.adapter import Outcome
from lbm_lora.checkpoint import Checkpoint, SafetensorsWriter, TensorSpec
from lbm_lora.errors import InputError
from lbm_lora.extraction.deltas import DeltaReader, DeltaSettings
from lbm_lora.extraction.plan import Action, Plan, PlanItem
from lbm_lora.factorize import (
    PACKED,
    Measure,
    WeightedSVD,
    Weights,
    dense_dtype,
    matrix_shape,
    rank_above,
    rank_bound,
    rounding_edge,
    to_matrix,
    weighted_svd,
)
from lbm_lora.files import MARK_KEY
from lbm_lora.naming import ParamName, module_of
from lbm_lora.parallel import ordered_map
from lbm_lora.ranks import (
    LEAST_CAP,
    SMALL_SIDE,
    Choice,
    DeltaSpectrum,
    OutputNorm,
    WidthSpectrum,
    dense_error,
    rounding_error,
    unweighted,
    vector_spectrum,
    width_spectrum,
)

_LEFT, _VALUES, _RIGHT = ".left", ".values", ".right"  # suffixes of a delta's vectors in the scratch file
_FIRST_SHARE = 4  # of its highest rank: what a delta gets in the first level
_USED = 0.75  # of the ranks that a delta has: one that uses more gets twice as many


@dataclass
class Survey:
    """Result of the first pass.

    Attributes:
        spectra: spectra of the deltas to decompose, without those that are unchanged or too small.
        widths: for a packed file instead the spectra of all deltas, dense ones too.
        others: measures of all other tensors: stored dense, or left out. In a weighted norm they do not count.
    """

    spectra: list[DeltaSpectrum]
    widths: list[WidthSpectrum]
    others: Measure

    def updated(self, other: "Survey") -> "Survey":
        """Return the survey with the spectra of another one in the place of its own."""
        spectra = {one.name: one for one in (*self.spectra, *other.spectra)}
        widths = {one.name: one for one in (*self.widths, *other.widths)}
        return Survey(list(spectra.values()), list(widths.values()), self.others)


def first_level(plan: Plan) -> Plan:
    """Return the plan at the ranks of the first level, from one with the highest rank of each delta."""
    caps: dict[ParamName, int] = {}
    for item in plan.of(Action.DECOMPOSE):
        highest = item.rank or 1
        few = max(LEAST_CAP, -(-highest // _FIRST_SHARE))
        caps[item.name] = highest if rank_bound(item.shape) <= SMALL_SIDE else min(highest, few)
    return plan.with_caps(caps)


def more_ranks(plan: Plan, surveyed: Plan, choices: Sequence[Choice]) -> dict[ParamName, int]:
    """Return the deltas to survey again, with their new highest ranks: those that use nearly all ranks that they have,
    or are stored dense, which more ranks may replace.

    Args:
        plan: plan with the highest rank of each delta.
        surveyed: the same with the ranks that were surveyed.
        choices: what would be chosen from these.
    """
    found: dict[ParamName, int] = {}
    for item, allowed in zip(surveyed.of(Action.DECOMPOSE), plan.of(Action.DECOMPOSE), strict=True):
        rank, highest = item.rank or 1, allowed.rank or 1
        used = [choice.highest_rank(item.name) for choice in choices]
        if rank < highest and any(one is None or one > _USED * rank for one in used):
            found[item.name] = min(2 * rank, highest)
    return found


class SurveyPass:
    """First pass of two.

    Args:
        plan: plan in which each decomposed item's `rank` is the highest that may be chosen.
        norm: output norm, if errors are weighted by it.
        scratch: file for the vectors, in fp32.
        has_spare: whether the highest ranks are more than what is likely to be chosen; see `truncated_svd`.
    """

    def __init__(
        self, plan: Plan, settings: DeltaSettings, norm: OutputNorm | None, scratch: Path, *, has_spare: bool = False
    ) -> None:
        self._plan, self._settings, self._norm, self._has_spare = plan, settings, norm, has_spare
        self._weights_of = norm.weights_of if norm else unweighted
        self._reader = DeltaReader(plan.pairing, settings)
        specs: dict[str, TensorSpec] = {}
        for item in plan.of(Action.DECOMPOSE):
            rank, (rows, columns) = item.rank or 1, matrix_shape(item.shape)
            specs[item.name + _LEFT] = TensorSpec(torch.float32, (rows, rank))
            specs[item.name + _VALUES] = TensorSpec(torch.float32, (rank,))
            specs[item.name + _RIGHT] = TensorSpec(torch.float32, (rank, columns))
        self._file = SafetensorsWriter(scratch, specs, metadata={MARK_KEY: "vectors of a survey"})

    def __len__(self) -> int:
        return len(self._plan.items)

    def run(self, on_tensor: Callable[[], None] = lambda: None) -> Survey:
        """Read every delta once; `on_tensor` is called after each."""
        survey = Survey([], [], Measure())
        with self._file:
            for made in ordered_map(self._decompose, self._plan.items):
                if isinstance(made, Outcome):
                    survey.others += made.row.measure
                else:
                    self._add(survey, *made)
                on_tensor()
        return survey

    def _add(self, survey: Survey, spectrum: DeltaSpectrum | WidthSpectrum, svd: WeightedSVD | None) -> None:
        if isinstance(spectrum, WidthSpectrum):
            survey.widths.append(spectrum)
        else:
            survey.spectra.append(spectrum)
        if svd is not None:
            self._file.write(spectrum.name + _LEFT, svd.left)
            self._file.write(spectrum.name + _VALUES, svd.values)
            self._file.write(spectrum.name + _RIGHT, svd.right)

    def _decompose(self, item: PlanItem) -> tuple[DeltaSpectrum | WidthSpectrum, WeightedSVD | None] | Outcome:
        delta = self._reader.read(item)
        if isinstance(delta, Outcome):
            return delta
        if item.action is Action.KEEP_DENSE:
            moment = self._norm.vector_moment_of(item.name) if self._norm else None
            is_unknown = self._norm is not None and self._norm.energy > 0 and moment is None
            return vector_spectrum(item.name, delta.values, moment, is_needed=is_unknown), None
        matrix = to_matrix(delta.values)
        weights = self._weights_of(module_of(item.name))
        try:
            whitening = weights.whitening()
            svd = weighted_svd(matrix, item.rank or 1, whitening, seed=seed_of(item.name), has_spare=self._has_spare)
        except InputError as error:
            raise InputError(f"{item.name}: ", *error.args) from None
        if self._settings.dtype == PACKED:
            return width_spectrum(item.name, item.shape, matrix, svd, weights, whitening), svd
        worth = len(svd.values)
        if weights == Weights():  # in another norm, values are not comparable with the noise
            worth = max(1, rank_above(svd.values, rounding_edge(to_matrix(self._plan.pairing.tuned.read(item.name)))))
        spectrum = DeltaSpectrum(
            name=item.name,
            shape=item.shape,
            squares=svd.values.double().square(),
            rest=svd.rest,
            rounding=rounding_error(svd, weights, self._settings.dtype),
            dense=dense_error(matrix, weights, dense_dtype(self._settings.dtype)),
            worth=worth,
        )
        return spectrum, svd


def stored_vectors(files: Sequence[Checkpoint], name: ParamName) -> WeightedSVD:
    """Read the vectors of one delta from the files of a survey: the last that has them."""
    file = next(file for file in reversed(files) if name + _VALUES in file.specs)
    left, values, right = (file.read(name + ending) for ending in (_LEFT, _VALUES, _RIGHT))
    return WeightedSVD(left, values, right, rest=0.0)


def seed_of(name: ParamName) -> int:
    """Return the seed of a tensor's random start: it depends only on the name, not on order or other tensors."""
    return xxhash.xxh3_64_intdigest(name.encode()) >> 1
