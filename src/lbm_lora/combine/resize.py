"""A LoRA at other ranks, from its factors alone: ranks chosen by a rule, one file or several in two passes."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lbm_lora.adapter import (
    FORMAT,
    Adapter,
    AdapterBuilder,
    AdapterMetadata,
    Ledger,
    Status,
    extraction_facts,
    store_outcomes,
)
from lbm_lora.adapter.metadata import COUNTS_KEY, REFINEMENT_KEY, SETTINGS_KEY, compact, parsed
from lbm_lora.combine.products import Products, Summand
from lbm_lora.combine.shrink import KEPT, Shrinking, chooser_of
from lbm_lora.errors import AdapterError
from lbm_lora.naming import ParamName
from lbm_lora.progress import SILENT, Progress
from lbm_lora.ranks import ChosenRanks, OutputNorm, Prediction, RankRule, Trial, unweighted

_OF_SOURCE = ("base", "tuned", "method", "calibration_images", "target_coverage", "min_diff")
"""Settings of an extraction that also hold for its result at other ranks."""


@dataclass(frozen=True, kw_only=True)
class Resized:
    """One resized adapter.

    Attributes:
        path: its file; None if it is kept in memory.
        ledger: a row for each parameter of the LoRA that was resized, with the error against it as stored.
        adapter: the adapter if it was kept in memory; None if it was written.
        chosen: its ranks with their trial.
        predicted: its expected and measured error.
        sizes: predictions for other sizes.
        rank, conv_rank: highest stored rank of linear and of conv layers; 0 without any.
        kept: lora modules that have no more ranks than were wanted, and are kept as they are.
    """

    path: Path | None
    ledger: Ledger
    adapter: Adapter | None
    chosen: ChosenRanks
    predicted: Prediction
    sizes: tuple[Prediction, ...]
    rank: int
    conv_rank: int
    kept: int


def resize_adapter(
    adapter: Adapter,
    rule: RankRule,
    paths: Sequence[Path | None],
    *,
    dtype: torch.dtype,
    left_out: Mapping[ParamName, str],
    settings: Mapping[str, object],
    norm: OutputNorm | None = None,
    open_trial: Callable[[], Trial | None] = lambda: None,
    progress: Progress = SILENT,
) -> list[Resized]:
    """Resize a LoRA by a rule, each file complete or absent.

    Args:
        paths: one file for each of `rule.names`; None for an adapter that is kept in memory.
        dtype: dtype of stored factors and dense deltas; with int8, dense deltas are fp16.
        left_out: params that are not stored, with the reason.
        settings: settings recorded in the files' metadata, besides the rule.
        norm: output norm, if errors are weighted by it.
        open_trial: opens the network in which choices are run before they are written.
    """
    shrinking = Shrinking(
        products=Products((Summand.of(adapter),)),
        dtype=dtype,
        prefix=adapter.prefix,
        weights_of=norm.weights_of if norm else unweighted,
        left_out=left_out,
    )
    headers = [_metadata(adapter, {**settings, **rule.facts(index)}) for index in range(len(paths))]
    chooser = chooser_of(shrinking, headers, norm, progress)
    found, predictor = chooser.choose(rule, open_trial()), chooser.predictor
    results: list[Resized] = []
    with ExitStack() as stack:
        pairs = [*zip(paths, headers, found, strict=True)]
        stores = [shrinking.store(path, one.choice.ranks, header, stack) for path, header, one in pairs]
        progress.start(len(adapter), "resizing")
        ledgers = store_outcomes(shrinking.outcomes([one.choice for one in found]), stores, progress)
        for (path, header, one), store, ledger in zip(pairs, stores, ledgers, strict=True):
            if not ledger.of(Status.LORA, Status.DENSE):
                raise AdapterError(f"nothing is left of {adapter.label}. Allow higher ranks or a larger file.")
            linear, conv = ledger.highest_ranks()
            result = Resized(
                path=path,
                ledger=ledger,
                adapter=None,
                chosen=one,
                predicted=predictor.prediction(one.choice),
                sizes=predictor.table(one.choice),
                rank=linear,
                conv_rank=conv,
                kept=sum(row.reason == KEPT for row in ledger),
            )
            store.metadata = _measured(adapter, header, result)
            results.append(result)
    return [
        replace(result, adapter=store.adapter() if isinstance(store, AdapterBuilder) else None)
        for result, store in zip(results, stores, strict=True)
    ]


def _metadata(adapter: Adapter, settings: Mapping[str, object]) -> AdapterMetadata:
    """Return the LoRA's metadata with the settings of the resize; what it says about errors no longer holds."""
    facts = dict(adapter.metadata.without_errors().facts)
    before = parsed(facts, SETTINGS_KEY)
    known = {key: before[key] for key in _OF_SOURCE if key in before}
    facts[SETTINGS_KEY] = compact({**known, **settings})
    if REFINEMENT_KEY in facts:
        refinement = parsed(facts, REFINEMENT_KEY)
        facts[REFINEMENT_KEY] = compact({key: refinement[key] for key in refinement if "error" not in key})
    return replace(adapter.metadata, format=FORMAT, facts=facts)


def _measured(adapter: Adapter, header: AdapterMetadata, result: Resized) -> AdapterMetadata:
    """Return the metadata with the ranks, counts and errors of what was stored."""
    earlier = parsed(adapter.metadata.facts, COUNTS_KEY)
    counts = result.ledger.counts()
    for status in (Status.UNCHANGED, Status.EXCLUDED):  # params that the resized LoRA does not hold
        count = earlier.get(status)
        counts[status] += count if isinstance(count, int) else 0
    errors = {"resize_error": result.ledger.total().relative_error}
    errors[f"predicted_{result.predicted.of}_error"] = result.predicted.error
    if result.chosen.images is not None:
        errors["measured_worst_psnr"] = result.chosen.images.worst_psnr
    settings = parsed(header.facts, SETTINGS_KEY)
    made = extraction_facts(
        rank=result.rank, conv_rank=result.conv_rank, counts=counts, errors=errors, settings=settings
    )
    return replace(header, facts={**header.facts, **made})
