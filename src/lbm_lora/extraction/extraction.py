"""Execute a plan: in one pass if ranks are given, else by a survey, a choice of ranks, and a second pass."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from lbm_lora.adapter import Adapter, Ledger
from lbm_lora.extraction.adapter_output import AdapterOutput, TooManyBytesError, store_adapters
from lbm_lora.extraction.deltas import DeltaSettings
from lbm_lora.extraction.passes import DirectPass
from lbm_lora.extraction.plan import Plan
from lbm_lora.extraction.selection import RankSelection, surveyed
from lbm_lora.extraction.shrinkage import Shrinkage, shrunk_as_needed
from lbm_lora.progress import SILENT, Progress
from lbm_lora.ranks import ChosenRanks, FixedRanks, OutputNorm, Prediction, RankRule, SizeLimits, WidthAllocator


@dataclass(frozen=True, kw_only=True)
class ExtractedAdapter:
    """One extracted adapter.

    Attributes:
        adapter: the adapter if it was kept in memory; None if it was written to `output.path`.
        predicted: its expected and measured error; None if ranks were given and nothing was calibrated.
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
    """
    facts = [{**run_settings, **rule.facts(index)} for index in range(len(paths))]
    if isinstance(rule, FixedRanks) and norm is None:
        return _directly(plan, rule, settings, paths, facts, progress)
    facts = [{**fact, "calibration": norm.name if norm else None} for fact in facts]
    with ExitStack() as stack:

        def opened(used: OutputNorm | None) -> RankSelection:
            return stack.enter_context(
                surveyed(plan, rule, settings, used, run_settings=facts, beside=paths[0], progress=progress)
            )

        trial = norm.open_trial() if norm else None
        selection, shrinkage = opened(norm), None
        found = selection.choose(rule, trial)
        if norm is not None and trial is not None:
            found, selection, shrinkage = shrunk_as_needed(rule, norm, trial, found, selection, opened)
        limits = rule.nbytes if isinstance(rule, SizeLimits) else [None] * len(paths)
        while True:
            outputs = [selection.output(*one) for one in zip(found, paths, facts, limits, strict=True)]
            if shrinkage is not None:
                outputs[0] = replace(outputs[0], errors={**outputs[0].errors, **shrinkage.facts()})
            # before a file is written, since all that can fail must fail by then
            tables = [selection.predictor.table(one.choice) for one in found]
            try:
                second = selection.carried_out([one.choice for one in found])
                stored = store_adapters(outputs, second, selection.plan, settings.dtype, progress)
                break
            except TooManyBytesError as error:
                assert isinstance(selection.allocator, WidthAllocator)
                selection.allocator.expect(found[error.index].choice, error.nbytes)
                found = selection.choose(rule, trial)
        return [
            ExtractedAdapter(
                output=output,
                ledger=ledger,
                adapter=adapter,
                predicted=selection.predictor.prediction(one.choice),
                chosen=one,
                sizes=table,
                shrinkage=shrinkage if output is outputs[0] else None,
            )
            for output, (ledger, adapter), one, table in zip(outputs, stored, found, tables, strict=True)
        ]


def _directly(
    plan: Plan,
    rule: FixedRanks,
    settings: DeltaSettings,
    paths: Sequence[Path | None],
    facts: Sequence[Mapping[str, object]],
    progress: Progress,
) -> list[ExtractedAdapter]:
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
        ExtractedAdapter(output=output, ledger=ledger, adapter=adapter)
        for output, (ledger, adapter) in zip(outputs, stored, strict=True)
    ]
