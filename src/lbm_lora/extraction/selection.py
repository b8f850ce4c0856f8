"""A surveyed plan, from which ranks are chosen and adapters written."""

import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lbm_lora.adapter import Outcome, StoredDelta
from lbm_lora.checkpoint import Checkpoint, open_checkpoint
from lbm_lora.extraction.adapter_output import AdapterOutput, header_bytes
from lbm_lora.extraction.deltas import DeltaSettings
from lbm_lora.extraction.passes import KeptPass, Pass, SurveyedPass
from lbm_lora.extraction.plan import Action, Plan
from lbm_lora.extraction.survey import Survey, SurveyPass, first_level, more_ranks
from lbm_lora.factorize import PACKED, Measure
from lbm_lora.naming import module_of
from lbm_lora.progress import Progress
from lbm_lora.ranks import (
    Allocator,
    Choice,
    Chooser,
    ChosenRanks,
    OutputNorm,
    Predictor,
    RankAllocator,
    RankRule,
    SizeLimits,
    Trial,
    WidthAllocator,
    predictor_of,
    unweighted,
)


@dataclass(frozen=True, kw_only=True)
class RankSelection:
    """A surveyed plan from which ranks are chosen and adapters written.

    Attributes:
        plan: plan with the highest rank that the rule may need for each delta.
        is_plain: whether the norm makes all errors cost the same, so that this is plain SVD.
    """

    plan: Plan
    settings: DeltaSettings
    norm: OutputNorm | None
    vectors: Sequence[Checkpoint]
    allocator: Allocator
    predictor: Predictor
    is_plain: bool = False
    _tried: list[tuple[Choice, KeptPass]] = field(default_factory=list[tuple[Choice, KeptPass]])
    """The last choice that was run, which is likely to be the one that is written."""

    @property
    def chooser(self) -> Chooser:
        return Chooser(self.allocator, self.predictor, self.deltas_of)

    def choose(self, rule: RankRule, trial: Trial | None = None) -> list[ChosenRanks]:
        """Return a choice for each adapter of the rule; see `Chooser.choose`."""
        return self.chooser.choose(rule, trial)

    def carried_out(self, choices: Sequence[Choice]) -> Pass:
        """Return the second pass for these choices."""
        for choice, kept in self._tried:
            if len(choices) == 1 and choices[0] is choice:
                return kept
        return SurveyedPass(self.plan, self.settings, self.norm, choices, self.vectors)

    @contextmanager
    def deltas_of(self, choice: Choice) -> Generator[Iterator[StoredDelta]]:
        """Open the deltas of a choice, as the second pass would store them; they stay until the next one is opened.

        Those of plain SVD, with which a LoRA is compared, are rarely written: they are not measured, and not kept.
        """
        second = self.carried_out([choice])
        if self.is_plain and isinstance(second, SurveyedPass):
            yield second.drafts()
            return
        outcomes: list[tuple[Outcome, ...]] = []

        def deltas() -> Iterator[StoredDelta]:
            for found in second:
                outcomes.append(found)
                yield found[0].stored()

        yield deltas()
        self._tried[:] = [(choice, second.kept(outcomes))] if len(outcomes) == len(second) else []

    def output(
        self, chosen: ChosenRanks, path: Path | None, settings: Mapping[str, object], limit: int | None
    ) -> AdapterOutput:
        """Return the output of a choice."""
        choice = chosen.choice
        shapes = {item.name: item.shape for item in self.plan.of(Action.DECOMPOSE)}
        highest = {2: 0, 4: 0}
        for name, rank in choice.ranks.items():
            highest[len(shapes[name])] = max(highest[len(shapes[name])], rank or 0)
        # some deltas that are dense in any case may be left out of a packed file
        dense = {name: shape for name, shape in self.plan.dense().items() if any(choice.widths.get(name, (1,)))}
        errors = self.predictor.prediction(choice).facts()
        if chosen.images is not None:
            errors["measured_worst_psnr"] = chosen.images.worst_psnr
        return AdapterOutput(
            path=path,
            shapes={module_of(name): shapes[name] for name, rank in choice.ranks.items() if rank},
            ranks={module_of(name): rank for name, rank in choice.ranks.items() if rank},
            dense={**dense, **{name: shapes[name] for name, rank in choice.ranks.items() if rank is None}},
            rank=highest[2],
            conv_rank=highest[4],
            settings=settings,
            errors=errors,
            most_data=limit - choice.nbytes + choice.data_bytes if limit and choice.data_bytes else None,
        )


@contextmanager
def surveyed(
    plan: Plan,
    rule: RankRule,
    settings: DeltaSettings,
    norm: OutputNorm | None,
    *,
    run_settings: Sequence[Mapping[str, object]],
    beside: Path | None,
    progress: Progress,
) -> Generator[RankSelection]:
    """Decompose every delta once, up to the highest rank that the rule may need.

    Args:
        run_settings: settings in each file's metadata, with its rule.
        beside: an output path; the vectors are stored in a folder next to it until the end. None: wherever temporary
            files go.
    """
    capped = plan.with_caps(rule.caps({item.name: item.shape for item in plan.of(Action.DECOMPOSE)}, settings.dtype))
    sizes = rule.nbytes if isinstance(rule, SizeLimits) and norm is not None else ()
    overhead = header_bytes(max(run_settings, key=lambda one: len(str(one))), plan, settings.dtype)
    is_plain = norm is not None and norm.weights_of is unweighted
    vectors: list[Checkpoint] = []
    with ExitStack() as stack:
        folder = stack.enter_context(_scratch_folder(beside))

        def survey_of(plan: Plan, what: str) -> Survey:
            file = folder / f"vectors_{len(vectors)}.safetensors"
            survey_pass = SurveyPass(plan, settings, norm, file, has_spare=bool(sizes))
            progress.start(len(survey_pass), what)
            survey = survey_pass.run(progress.advance)
            vectors.append(stack.enter_context(open_checkpoint(file)))
            return survey

        def allocator_of(survey: Survey) -> Allocator:
            prefix = plan.pairing.tuned.prefix
            if settings.dtype == PACKED:
                return WidthAllocator(survey.widths, prefix=prefix, overhead=overhead)
            return RankAllocator(
                survey.spectra,
                settings.dtype,
                prefix=prefix,
                dense=capped.dense(),
                overhead=overhead,
                others=Measure() if norm else survey.others,
            )

        known = first_level(capped) if sizes else capped
        survey = survey_of(known, "surveying")
        allocator = allocator_of(survey)
        # plain SVD uses nearly all ranks that it gets: more of them would have fewer bits each, and gain little
        while sizes and not is_plain and (caps := more_ranks(capped, known, allocator.within(sizes))):
            known = known.with_caps(caps)
            survey = survey.updated(survey_of(known.only(caps), "surveying higher ranks"))
            allocator = allocator_of(survey)
        yield RankSelection(
            plan=capped,
            settings=settings,
            norm=norm,
            vectors=vectors,
            allocator=allocator,
            predictor=predictor_of(allocator, norm),
            is_plain=is_plain,
        )


@contextmanager
def _scratch_folder(beside: Path | None) -> Generator[Path]:
    if beside is not None:
        beside.parent.mkdir(parents=True, exist_ok=True)
    prefix, parent = (".lbm-lora.", None) if beside is None else (f".{beside.name[:200]}.", beside.parent)
    with tempfile.TemporaryDirectory(prefix=prefix, suffix=".part", dir=parent) as folder:
        yield Path(folder)
