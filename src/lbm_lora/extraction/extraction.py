"""A plan carried out: in one pass where ranks are given, else a survey, the choice of ranks, and the second pass."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from lbm_lora.adapter import Adapter, Ledger
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.extraction.adapter_output import AdapterOutput, header_bytes, store_adapters
from lbm_lora.extraction.allocate import Choice, RankAllocator
from lbm_lora.extraction.deltas import DeltaSettings
from lbm_lora.extraction.passes import DirectPass, SurveyedPass
from lbm_lora.extraction.plan import Action, Plan
from lbm_lora.extraction.prediction import Prediction, Predictor
from lbm_lora.extraction.rules import FixedRanks, RankRule
from lbm_lora.extraction.survey import SurveyPass, WeightsOf, unweighted
from lbm_lora.extraction.trials import Chooser, ChosenRanks, Trial
from lbm_lora.naming import module_of
from lbm_lora.progress import SILENT, Progress


@dataclass(frozen=True, kw_only=True)
class OutputNorm:
    """The norm of a network's output, in place of that of the weights.

    Attributes:
        name: of the file that it comes from, without folder.
        weights_of: what an error in a module costs.
        energy: mean squared norm of the output; a squared error over it is a relative one.
        open_trial: opens the network that choices are run in before they are written, after the survey.
    """

    name: str
    weights_of: WeightsOf
    energy: float
    open_trial: Callable[[], Trial | None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class ExtractedAdapter:
    """One adapter that came out.

    Attributes:
        adapter: where it was kept in memory; None where it was written to `output.path`.
        predicted: what is expected of it, and what was measured; None where ranks were given and nothing calibrated.
        chosen: its ranks with their trial; likewise.
        sizes: what other sizes would give; likewise.
    """

    output: AdapterOutput
    ledger: Ledger
    adapter: Adapter | None = None
    predicted: Prediction | None = None
    chosen: ChosenRanks | None = None
    sizes: tuple[Prediction, ...] = ()


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
    """The adapters that a rule asks for; every file is complete or not there.

    Args:
        paths: of the files, one for each of `rule.names`; None for an adapter that is kept in memory.
        run_settings: what the files' metadata will say of the run, besides the rule.
        norm: of the output, where errors are weighed by it.

    Raises:
        InputError: of the kind that fits; no file is written then.
    """
    facts = [{**run_settings, **rule.facts(index)} for index in range(len(paths))]
    if isinstance(rule, FixedRanks) and norm is None:
        return _directly(plan, rule, settings, paths, facts, progress)
    facts = [{**fact, "calibration": norm.name if norm else None} for fact in facts]
    with (
        _beside(paths[0]) as beside,
        surveyed(plan, rule, settings, norm, run_settings=facts, beside=beside, progress=progress) as selection,
    ):
        found = selection.choose(rule, norm.open_trial() if norm else None)
        outputs = [selection.output(*one) for one in zip(found, paths, facts, strict=True)]
        with selection.carried_out([one.choice for one in found]) as second:
            stored = store_adapters(outputs, second, selection.plan, settings.dtype, progress)
        return [
            ExtractedAdapter(
                output=output,
                ledger=kept.ledger,
                adapter=kept.adapter,
                predicted=selection.predictor.prediction(one.choice),
                chosen=one,
                sizes=selection.predictor.table(one.choice.nbytes),
            )
            for output, kept, one in zip(outputs, stored, found, strict=True)
        ]


def _directly(
    plan: Plan,
    rule: FixedRanks,
    settings: DeltaSettings,
    paths: Sequence[Path | None],
    facts: Sequence[Mapping[str, object]],
    progress: Progress,
) -> list[ExtractedAdapter]:
    """Given ranks, least error of the weights: one pass."""
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
    """A surveyed plan, from which ranks are chosen and carried out.

    Attributes:
        plan: with the highest rank of each delta that the survey has found.
        vectors: the file of the survey.
    """

    plan: Plan
    settings: DeltaSettings
    weights_of: WeightsOf
    vectors: Path
    allocator: RankAllocator
    predictor: Predictor

    def choose(self, rule: RankRule, trial: Trial | None = None) -> list[ChosenRanks]:
        """A choice for each adapter that the rule asks for; see `Chooser.choose`."""
        return Chooser(self.allocator, self.predictor, self.carried_out).choose(rule, trial)

    @contextmanager
    def carried_out(self, choices: Sequence[Choice]) -> Generator[SurveyedPass]:
        """The second pass for these choices."""
        with open_checkpoint(self.vectors) as vectors:
            ranks = [choice.ranks for choice in choices]
            yield SurveyedPass(self.plan, self.settings, self.weights_of, ranks, vectors)

    def output(self, chosen: ChosenRanks, path: Path | None, settings: Mapping[str, object]) -> AdapterOutput:
        """The output of a choice.

        Args:
            settings: of the run, for the file's metadata.
        """
        choice = chosen.choice
        shapes = {item.name: item.shape for item in self.plan.of(Action.DECOMPOSE)}
        highest = {2: 0, 4: 0}
        for name, rank in choice.ranks.items():
            highest[len(shapes[name])] = max(highest[len(shapes[name])], rank or 0)
        errors = {f"predicted_{self.predictor.of}_error": self.predictor.prediction(choice).error}
        if chosen.images is not None:
            errors["measured_worst_psnr"] = chosen.images.worst_psnr
        return AdapterOutput(
            path=path,
            shapes={module_of(name): shapes[name] for name, rank in choice.ranks.items() if rank},
            ranks={module_of(name): rank for name, rank in choice.ranks.items() if rank},
            dense={**self.plan.dense(), **{name: shapes[name] for name, rank in choice.ranks.items() if rank is None}},
            rank=highest[2],
            conv_rank=highest[4],
            settings=settings,
            errors=errors,
        )


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
    """Decompose every delta once, as far as the rule can need it.

    Args:
        norm: of the output, where errors are weighed by it.
        run_settings: what the metadata of each file will say of the run and its rule.
        beside: an output; the vectors are put beside it, and removed at the end.
    """
    capped = rule.capped(plan, settings.dtype)
    weights_of = norm.weights_of if norm else unweighted
    vectors = beside.with_name(f".{beside.stem}.vectors.safetensors")
    try:
        survey_pass = SurveyPass(capped, settings, weights_of, vectors)
        progress.start(len(survey_pass), "surveying")
        survey = survey_pass.run(progress.advance)
        longest = max(run_settings, key=lambda one: len(str(one)))
        allocator = RankAllocator(
            capped, survey, settings.dtype, overhead=header_bytes(longest, plan), is_weighted=norm is not None
        )
        predictor = Predictor(
            allocator,
            reference_sq=norm.energy if norm else allocator.energy_sq,
            of="output" if norm else "weights",
        )
        yield RankSelection(
            plan=capped,
            settings=settings,
            weights_of=weights_of,
            vectors=vectors,
            allocator=allocator,
            predictor=predictor,
        )
    finally:
        vectors.unlink(missing_ok=True)
