"""Execute a plan: in one pass if ranks are given, else by a survey, a choice of ranks, and a second pass."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from lbm_lora.adapter import Adapter, Ledger
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.extraction.adapter_output import AdapterOutput, header_bytes, store_adapters
from lbm_lora.extraction.deltas import DeltaSettings
from lbm_lora.extraction.passes import DirectPass, SurveyedPass
from lbm_lora.extraction.plan import Action, Plan
from lbm_lora.extraction.shrinkage import (
    Open,
    Shrinkage,
    at_size,
    is_safe,
    least_shrinkage,
    plain_norm,
    run_choice,
)
from lbm_lora.extraction.survey import Survey, SurveyPass
from lbm_lora.factorize import PACKED, Measure
from lbm_lora.naming import ParamName, module_of
from lbm_lora.progress import SILENT, Progress
from lbm_lora.ranks import (
    Choice,
    Chooser,
    ChosenRanks,
    FixedRanks,
    OutputNorm,
    Prediction,
    Predictor,
    RankAllocator,
    RankRule,
    StoredDelta,
    Trial,
    TrialErrors,
    WidthAllocator,
    predictor_of,
)


@dataclass(frozen=True, kw_only=True)
class ExtractedAdapter:
    """One extracted adapter.

    Attributes:
        adapter: the adapter if it was kept in memory; None if it was written to `output.path`.
        predicted: its expected and measured error; None if ranks were given and nothing was calibrated.
        chosen: its ranks with their trial; None in the same case.
        sizes: predictions for other sizes; empty in the same case.
        shrinkage: how the first LoRA compares with plain SVD, if LoRAs were run; the others use the same statistics.
    """

    output: AdapterOutput
    ledger: Ledger
    adapter: Adapter | None = None
    predicted: Prediction | None = None
    chosen: ChosenRanks | None = None
    sizes: tuple[Prediction, ...] = ()
    shrinkage: Shrinkage | None = None


def extract_adapters(
    plan: Plan,
    rule: RankRule,
    settings: DeltaSettings,
    paths: Sequence[Path | None],
    *,
    run_settings: Mapping[str, object],
    norm: OutputNorm | None = None,
    progress: Progress = SILENT,
) -> list[ExtractedAdapter]:
    """Extract the adapters of a rule, each file complete or absent.

    Args:
        paths: one file for each of `rule.names`; None for an adapter that is kept in memory.
        run_settings: settings recorded in the files' metadata, besides the rule.
        norm: output norm, if errors are weighted by it.

    Raises:
        InputError: a subclass that fits the cause; no file is written.
    """
    facts = [{**run_settings, **rule.facts(index)} for index in range(len(paths))]
    if isinstance(rule, FixedRanks) and norm is None:
        return _directly(plan, rule, settings, paths, facts, progress)
    facts = [{**fact, "calibration": norm.name if norm else None} for fact in facts]
    with ExitStack() as stack:
        beside = stack.enter_context(_beside(paths[0]))

        def opened(used: OutputNorm | None, name: str = "") -> AbstractContextManager[RankSelection]:
            place = beside.with_stem(f"{beside.stem}{name}")
            return surveyed(plan, rule, settings, used, run_settings=facts, beside=place, progress=progress)

        trial = norm.open_trial() if norm else None
        selection = stack.enter_context(opened(norm))
        found = selection.choose(rule, trial)
        shrinkage = None
        given = selection.predictor.measured(found[0].choice)
        if norm is not None and norm.shrunk is not None and trial is not None and given is not None:
            found, selection, shrinkage = _checked(stack, rule, norm, trial, found, given, selection, opened)
        outputs = [selection.output(*one) for one in zip(found, paths, facts, strict=True)]
        if shrinkage is not None:
            outputs[0] = replace(outputs[0], errors={**outputs[0].errors, **shrinkage.facts()})
        with selection.carried_out([one.choice for one in found]) as second:
            stored = store_adapters(outputs, second, selection.plan, settings.dtype, progress)
        return [
            ExtractedAdapter(
                output=output,
                ledger=kept.ledger,
                adapter=kept.adapter,
                predicted=selection.predictor.prediction(one.choice),
                chosen=one,
                sizes=selection.predictor.table(one.choice),
                shrinkage=shrinkage if output is outputs[0] else None,
            )
            for output, kept, one in zip(outputs, stored, found, strict=True)
        ]


def _checked(
    stack: ExitStack,
    rule: RankRule,
    norm: OutputNorm,
    trial: Trial,
    found: list[ChosenRanks],
    given: TrialErrors,
    selection: "RankSelection",
    opened: Open,
) -> tuple[list[ChosenRanks], "RankSelection", Shrinkage]:
    """Compare the first choice with plain SVD, and shrink the statistics as far as it is worse; see `shrinkage`.

    The least shrinkage that is not worse has the least error on inputs of the calibration's kind; if none is, plain SVD
    is used.
    """
    first = found[0].choice
    tried: dict[float, tuple[RankSelection, TrialErrors]] = {}

    def run(used: OutputNorm, name: str) -> tuple[RankSelection, TrialErrors]:
        other = stack.enter_context(opened(used, name))
        return other, run_choice(other, at_size(other, rule, first), trial)

    def is_safe_at(ridge: float) -> bool:
        assert norm.shrunk is not None
        tried[ridge] = run(replace(norm, weights_of=norm.shrunk(ridge)), f"_{ridge:g}")
        return is_safe(tried[ridge][1], of_plain)

    plain, of_plain = run(plain_norm(norm), "_plain")
    if is_safe(given, of_plain):
        return found, selection, Shrinkage(kind="given", errors=given, plain=of_plain)
    ridge = least_shrinkage(is_safe_at)
    if ridge is None:
        return plain.choose(rule, trial), plain, Shrinkage(kind="plain", errors=of_plain, plain=of_plain)
    used, errors = tried[ridge]
    return used.choose(rule, trial), used, Shrinkage(kind="shrunk", ridge=ridge, errors=errors, plain=of_plain)


def _directly(
    plan: Plan,
    rule: FixedRanks,
    settings: DeltaSettings,
    paths: Sequence[Path | None],
    facts: Sequence[Mapping[str, object]],
    progress: Progress,
) -> list[ExtractedAdapter]:
    """Write adapters of given ranks with the least weight error, in one pass."""
    plans = [plan.with_ranks(ranks) for ranks in rule.ranks]
    outputs = [
        AdapterOutput(
            path=path,
            shapes=one.shapes(),
            ranks=one.ranks(),
            dense=one.dense(),
            rank=ranks.linear,
            conv_rank=ranks.conv,
            settings=settings,
        )
        for path, one, ranks, settings in zip(paths, plans, rule.ranks, facts, strict=True)
    ]
    stored = store_adapters(outputs, DirectPass(plans, settings), plan, settings.dtype, progress)
    return [
        ExtractedAdapter(output=output, ledger=kept.ledger, adapter=kept.adapter)
        for output, kept in zip(outputs, stored, strict=True)
    ]


@contextmanager
def _beside(path: Path | None) -> Generator[Path]:
    """Where the file of a survey goes: beside the first output, or where there is none into a temporary folder."""
    with ExitStack() as stack:
        yield path or Path(stack.enter_context(TemporaryDirectory(prefix="lbm-lora-"))) / "adapter"


@dataclass(frozen=True, kw_only=True)
class RankSelection:
    """A surveyed plan from which ranks are chosen and adapters written.

    Attributes:
        plan: plan with the highest rank that the survey found for each delta.
        vectors: the survey's file of vectors.
    """

    plan: Plan
    settings: DeltaSettings
    norm: OutputNorm | None
    vectors: Path
    allocator: RankAllocator | WidthAllocator
    predictor: Predictor

    def choose(self, rule: RankRule, trial: Trial | None = None) -> list[ChosenRanks]:
        """Return a choice for each adapter of the rule; see `Chooser.choose`."""
        return Chooser(self.allocator, self.predictor, self.deltas_of).choose(rule, trial)

    @contextmanager
    def carried_out(self, choices: Sequence[Choice]) -> Generator[SurveyedPass]:
        """Open the second pass for these choices."""
        with open_checkpoint(self.vectors) as vectors:
            yield SurveyedPass(self.plan, self.settings, self.norm, choices, vectors)

    @contextmanager
    def deltas_of(self, choice: Choice) -> Generator[Iterator[StoredDelta]]:
        """Open the deltas of a choice, as the second pass would store them."""
        with self.carried_out([choice]) as second:
            yield (outcome.stored() for (outcome,) in second)

    def output(self, chosen: ChosenRanks, path: Path | None, settings: Mapping[str, object]) -> AdapterOutput:
        """Return the output of a choice.

        Args:
            settings: settings of the run, for the file's metadata.
        """
        choice = chosen.choice
        shapes = {item.name: item.shape for item in self.plan.of(Action.DECOMPOSE)}
        highest = {2: 0, 4: 0}
        for name, rank in choice.ranks.items():
            highest[len(shapes[name])] = max(highest[len(shapes[name])], rank or 0)
        predicted = self.predictor.prediction(choice)
        errors = {f"predicted_{self.predictor.of}_error": predicted.error}
        if predicted.shifted is not None:
            errors["shifted_output_error"] = predicted.shifted
        if chosen.images is not None:
            errors["measured_worst_psnr"] = chosen.images.worst_psnr
        return AdapterOutput(
            path=path,
            shapes={module_of(name): shapes[name] for name, rank in choice.ranks.items() if rank},
            ranks={module_of(name): rank for name, rank in choice.ranks.items() if rank},
            dense={
                **self._dense(choice),
                **{name: shapes[name] for name, rank in choice.ranks.items() if rank is None},
            },
            rank=highest[2],
            conv_rank=highest[4],
            settings=settings,
            errors=errors,
        )

    def _dense(self, choice: Choice) -> dict[ParamName, tuple[int, ...]]:
        """Return the shapes of the deltas that are stored dense in any case; some may be left out of a packed file."""
        return {name: shape for name, shape in self.plan.dense().items() if any(choice.widths.get(name, (1,)))}


@contextmanager
def surveyed(
    plan: Plan,
    rule: RankRule,
    settings: DeltaSettings,
    norm: OutputNorm | None,
    *,
    run_settings: Sequence[Mapping[str, object]],
    beside: Path,
    progress: Progress,
) -> Generator[RankSelection]:
    """Decompose every delta once, up to the highest rank that the rule may need.

    Args:
        norm: output norm, if errors are weighted by it.
        run_settings: settings recorded in each file's metadata about the run and its rule.
        beside: an output path; the vectors are stored next to it and removed at the end.
    """
    capped = capped_plan(plan, rule, settings.dtype)
    vectors = vectors_beside(beside)
    try:
        survey_pass = SurveyPass(capped, settings, norm, vectors)
        progress.start(len(survey_pass), "surveying")
        survey = survey_pass.run(progress.advance)
        longest = max(run_settings, key=lambda one: len(str(one)))
        overhead = header_bytes(longest, plan, settings.dtype)
        allocator = (
            WidthAllocator(survey.widths, prefix=plan.pairing.tuned.prefix, overhead=overhead)
            if settings.dtype == PACKED
            else rank_allocator(capped, survey, settings.dtype, overhead=overhead, is_weighted=norm is not None)
        )
        yield RankSelection(
            plan=capped,
            settings=settings,
            norm=norm,
            vectors=vectors,
            allocator=allocator,
            predictor=predictor_of(allocator, norm),
        )
    finally:
        vectors.unlink(missing_ok=True)


def vectors_beside(output: Path) -> Path:
    """Return the path of the vectors of a survey, next to the first output."""
    return output.with_name(f".{output.stem}.vectors.safetensors")


def capped_plan(plan: Plan, rule: RankRule, dtype: torch.dtype) -> Plan:
    """Return the plan with the highest rank that the rule may need for each delta."""
    return plan.with_caps(rule.caps({item.name: item.shape for item in plan.of(Action.DECOMPOSE)}, dtype))


def rank_allocator(
    plan: Plan, survey: Survey, dtype: torch.dtype, *, overhead: int, is_weighted: bool
) -> RankAllocator:
    """Return the allocator of a survey.

    Args:
        overhead: bytes of the file besides its tensors' data and header entries.
        is_weighted: whether the survey uses an output norm, in which the other tensors were not measured.
    """
    return RankAllocator(
        survey.spectra,
        dtype,
        prefix=plan.pairing.tuned.prefix,
        dense=plan.dense(),
        overhead=overhead,
        others=Measure() if is_weighted else survey.others,
    )
