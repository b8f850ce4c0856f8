"""Execute a plan: in one pass if ranks are given, else by a survey, a choice of ranks, and a second pass."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lbm_lora.adapter import Adapter, Ledger
from lbm_lora.extraction.adapter_output import AdapterOutput, TooManyBytesError, store_adapters
from lbm_lora.extraction.deltas import DeltaSettings
from lbm_lora.extraction.passes import DirectPass
from lbm_lora.extraction.plan import Plan
from lbm_lora.extraction.selection import RankSelection, surveyed
from lbm_lora.extraction.shrinkage import (
    Open,
    Shrinkage,
    at_size,
    base_errors,
    is_safe,
    least_shrinkage,
    plain_norm,
    run_choice,
)
from lbm_lora.progress import SILENT, Progress
from lbm_lora.ranks import (
    ChosenRanks,
    FixedRanks,
    OutputNorm,
    Prediction,
    RankRule,
    SizeLimits,
    Trial,
    TrialErrors,
)
from lbm_lora.temp_folder import temp_folder


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

        def opened(used: OutputNorm | None) -> AbstractContextManager[RankSelection]:
            return surveyed(plan, rule, settings, used, run_settings=facts, beside=beside, progress=progress)

        trial = norm.open_trial() if norm else None
        selection = stack.enter_context(opened(norm))
        found = selection.choose(rule, trial)
        shrinkage = None
        given = selection.predictor.measured(found[0].choice)
        if norm is not None and norm.shrunk is not None and trial is not None and given is not None:
            found, selection, shrinkage = _checked(stack, rule, norm, trial, found, given, selection, opened)
        limits = rule.nbytes if isinstance(rule, SizeLimits) else [None] * len(paths)
        while True:
            outputs = [selection.output(*one) for one in zip(found, paths, facts, limits, strict=True)]
            if shrinkage is not None:
                outputs[0] = replace(outputs[0], errors={**outputs[0].errors, **shrinkage.facts()})
            # before a file is written, since all that can fail must fail by then
            tables = [selection.predictor.table(one.choice) for one in found]
            try:
                with selection.carried_out([one.choice for one in found]) as second:
                    stored = store_adapters(outputs, second, selection.plan, settings.dtype, progress)
                break
            except TooManyBytesError as error:
                selection.expect(found[error.index].choice, error.nbytes)
                found = selection.choose(rule, trial)
        return [
            ExtractedAdapter(
                output=output,
                ledger=kept.ledger,
                adapter=kept.adapter,
                predicted=selection.predictor.prediction(one.choice),
                chosen=one,
                sizes=table,
                shrinkage=shrinkage if output is outputs[0] else None,
            )
            for output, kept, one, table in zip(outputs, stored, found, tables, strict=True)
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
    of_base = base_errors(selection, first, trial)
    tried: dict[float, tuple[RankSelection, TrialErrors]] = {}

    def run(used: OutputNorm) -> tuple[RankSelection, TrialErrors]:
        other = stack.enter_context(opened(used))
        return other, run_choice(other, at_size(other, rule, first), trial)

    def is_safe_at(ridge: float) -> bool:
        assert norm.shrunk is not None
        tried[ridge] = run(replace(norm, weights_of=norm.shrunk(ridge)))
        return is_safe(tried[ridge][1], of_plain)

    plain, of_plain = run(plain_norm(norm))
    if is_safe(given, of_plain):
        return found, selection, Shrinkage(kind="given", errors=given, plain=of_plain, base=of_base)
    ridge = least_shrinkage(is_safe_at)
    if ridge is None:
        return plain.choose(rule, trial), plain, Shrinkage(kind="plain", errors=of_plain, plain=of_plain, base=of_base)
    used, errors = tried[ridge]
    return (
        used.choose(rule, trial),
        used,
        Shrinkage(kind="shrunk", ridge=ridge, errors=errors, plain=of_plain, base=of_base),
    )


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
        yield path or stack.enter_context(temp_folder()) / "adapter"
