"""A surveyed plan, from which ranks are chosen and adapters written."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lbm_lora.adapter import Outcome, StoredDelta
from lbm_lora.atomic import scratch_folder
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.extraction.adapter_output import AdapterOutput, header_bytes
from lbm_lora.extraction.deltas import DeltaSettings
from lbm_lora.extraction.levels import first_level, more_ranks
from lbm_lora.extraction.passes import KeptPass, Pass, SurveyedPass
from lbm_lora.extraction.plan import Action, Plan
from lbm_lora.extraction.survey import Survey, SurveyPass
from lbm_lora.factorize import PACKED, Measure
from lbm_lora.naming import ParamName, module_of
from lbm_lora.progress import Progress
from lbm_lora.ranks import (
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
        plan: plan with the highest rank that the survey found for each delta.
        vectors: the survey's files of vectors.
        is_plain: whether the norm makes all errors cost the same, so that this is plain SVD.
    """

    plan: Plan
    settings: DeltaSettings
    norm: OutputNorm | None
    vectors: Sequence[Path]
    allocator: RankAllocator | WidthAllocator
    predictor: Predictor
    is_plain: bool = False
    _tried: list[tuple[Choice, KeptPass]] = field(default_factory=list[tuple[Choice, KeptPass]])
    """The last choice that was run, which is likely to be the one that is written."""

    def choose(self, rule: RankRule, trial: Trial | None = None) -> list[ChosenRanks]:
        """Return a choice for each adapter of the rule; see `Chooser.choose`."""
        return Chooser(self.allocator, self.predictor, self.deltas_of).choose(rule, trial)

    def expect(self, choice: Choice, data_bytes: int) -> None:
        """Expect more bytes of further choices; see `WidthAllocator.expect`."""
        assert isinstance(self.allocator, WidthAllocator)
        self.allocator.expect(choice, data_bytes)

    @contextmanager
    def carried_out(self, choices: Sequence[Choice]) -> Generator[Pass]:
        """Open the second pass for these choices."""
        for choice, kept in self._tried:
            if len(choices) == 1 and choices[0] is choice:
                yield kept
                return
        with ExitStack() as stack:
            vectors = [stack.enter_context(open_checkpoint(path)) for path in self.vectors]
            yield SurveyedPass(self.plan, self.settings, self.norm, choices, vectors)

    @contextmanager
    def deltas_of(self, choice: Choice) -> Generator[Iterator[StoredDelta]]:
        """Open the deltas of a choice, as the second pass would store them; they stay until the next one is opened.

        Those of plain SVD, with which a LoRA is compared, are rarely written: they are not measured, and not kept.
        """
        with self.carried_out([choice]) as second:
            if self.is_plain and isinstance(second, SurveyedPass):
                yield second.drafts()
                return
            outcomes: list[tuple[Outcome, ...]] = []

            def deltas() -> Iterator[StoredDelta]:
                for found in second:
                    outcomes.append(found)
                    yield found[0].stored()

            yield deltas()
            self._tried[:] = (
                [(choice, KeptPass(outcomes, second.fingerprints()))] if len(outcomes) == len(second) else []
            )

    def output(
        self, chosen: ChosenRanks, path: Path | None, settings: Mapping[str, object], limit: int | None
    ) -> AdapterOutput:
        """Return the output of a choice.

        Args:
            settings: settings of the run, for the file's metadata.
            limit: limit on the bytes of the file; None for no limit.
        """
        choice = chosen.choice
        shapes = {item.name: item.shape for item in self.plan.of(Action.DECOMPOSE)}
        highest = {2: 0, 4: 0}
        for name, rank in choice.ranks.items():
            highest[len(shapes[name])] = max(highest[len(shapes[name])], rank or 0)
        predicted = self.predictor.prediction(choice)
        errors = predicted.facts()
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
            most_data=limit - choice.nbytes + choice.data_bytes if limit and choice.data_bytes else None,
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
        beside: an output path; the vectors are stored in a folder next to it, which is removed at the end.
    """
    capped = capped_plan(plan, rule, settings.dtype)
    sizes = rule.nbytes if isinstance(rule, SizeLimits) and norm is not None else ()
    longest = max(run_settings, key=lambda one: len(str(one)))
    overhead = header_bytes(longest, plan, settings.dtype)

    def allocator_of(survey: Survey) -> RankAllocator | WidthAllocator:
        if settings.dtype == PACKED:
            return WidthAllocator(survey.widths, prefix=plan.pairing.tuned.prefix, overhead=overhead)
        return rank_allocator(capped, survey, settings.dtype, overhead=overhead, is_weighted=norm is not None)

    with scratch_folder(beside) as folder:
        vectors: list[Path] = []

        def survey_of(plan: Plan) -> Survey:
            vectors.append(folder / f"vectors_{len(vectors)}.safetensors")
            survey_pass = SurveyPass(plan, settings, norm, vectors[-1], has_spare=bool(sizes))
            progress.start(len(survey_pass), "surveying" if len(vectors) == 1 else "surveying higher ranks")
            return survey_pass.run(progress.advance)

        is_plain = norm is not None and norm.weights_of is unweighted
        known = first_level(capped) if sizes else capped
        survey = survey_of(known)
        allocator = allocator_of(survey)
        while sizes and not is_plain and (caps := more_ranks(capped, known, allocator.within(sizes))):
            known = known.with_caps(caps)
            survey = survey.updated(survey_of(known.only(caps)))
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
