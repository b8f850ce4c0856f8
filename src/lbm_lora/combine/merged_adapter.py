"""A merged LoRA as a file or in memory, with what it records of the LoRAs that went in."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lbm_lora.adapter import (
    FORMAT,
    Adapter,
    AdapterBuilder,
    AdapterMetadata,
    AdapterWriter,
    Ledger,
    LoraScale,
    common_dtype,
    extraction_facts,
    precision,
)
from lbm_lora.adapter.metadata import SETTINGS_KEY
from lbm_lora.checkpoint import dtype_name
from lbm_lora.combine.merge import Ranks, added_ranks, chosen_ranks, lossless_ranks, store_merged
from lbm_lora.combine.merge_base import MergedBase
from lbm_lora.combine.merge_options import WITH_DENSITY
from lbm_lora.combine.methods import DENSITY, combine_by
from lbm_lora.combine.products import Products, Summand
from lbm_lora.combine.shrink import Shrinking
from lbm_lora.configs.merge import MergeConfig
from lbm_lora.naming import module_of
from lbm_lora.progress import SILENT, Progress
from lbm_lora.ranks import FixedRanks, OutputNorm, RankRule, unweighted


@dataclass(frozen=True, kw_only=True)
class MergedAdapter:
    """What a merge made.

    Attributes:
        adapter: the LoRA if it was kept in memory; None if it was written.
        ledger: a row for each parameter of the LoRAs, with the error as stored.
    """

    adapter: Adapter | None
    ledger: Ledger


def merge_adapters(
    config: MergeConfig,
    rule: RankRule | None,
    loras: Sequence[tuple[Adapter, LoraScale]],
    base: MergedBase,
    path: Path | None,
    *,
    norm: OutputNorm | None = None,
    progress: Progress = SILENT,
) -> MergedAdapter:
    """Merge LoRAs at their scales.

    Args:
        config: its paths name things for the metadata; nothing is read from them.
        rule: for the ranks; None if nothing is to be lost.
        path: the file to write; None for a LoRA that is kept in memory.
        norm: output norm, if what is lost is weighted by it.
    """
    density = DENSITY if config.density is None else config.density
    adapters = [adapter for adapter, _ in loras]
    shrinking = Shrinking(
        products=Products(
            tuple(Summand.of(*one) for one in loras), combine_by(config.method, density=density, seed=config.seed)
        ),
        dtype=_stored_dtype(config, adapters),
        prefix=next((adapter.prefix for adapter in adapters if adapter.prefix), ""),
        weights_of=norm.weights_of if norm else unweighted,
        left_out={},
        keeps_factors=config.exact,
    )
    settings = _settings(config, rule, loras, density, shrinking.dtype)
    header = AdapterMetadata(
        FORMAT, base.fingerprint, base.tensors, base.tuned, facts={SETTINGS_KEY: json.dumps(settings)}
    )
    ranks = _ranks(config, rule, shrinking, header, norm, progress)
    with ExitStack() as stack:
        store: AdapterBuilder | AdapterWriter
        if path is None:
            store = AdapterBuilder(shrinking.prefix, shrinking.dtype, header)
        else:
            store = stack.enter_context(_writer(path, shrinking, ranks, header))
        ledger = store_merged(shrinking, ranks, store, progress)
        store.metadata = replace(header, facts=_facts(ledger, settings))
    return MergedAdapter(adapter=store.adapter() if isinstance(store, AdapterBuilder) else None, ledger=ledger)


def _stored_dtype(config: MergeConfig, adapters: Sequence[Adapter]) -> torch.dtype:
    """Return the dtype asked for, else that of all LoRAs, else fp32; fp32 for exact factors."""
    if config.save_precision is not None:
        return precision(config.save_precision)
    return torch.float32 if config.exact else common_dtype(adapters)


def _ranks(
    config: MergeConfig,
    rule: RankRule | None,
    shrinking: Shrinking,
    header: AdapterMetadata,
    norm: OutputNorm | None,
    progress: Progress,
) -> Ranks:
    if config.exact:
        return added_ranks(shrinking)
    if rule is None or isinstance(rule, FixedRanks):
        return lossless_ranks(shrinking, rule.ranks[0] if rule else None, progress)
    return chosen_ranks(shrinking, rule, header, norm, progress)


def _writer(path: Path, shrinking: Shrinking, ranks: Ranks, header: AdapterMetadata) -> AdapterWriter:
    shapes = shrinking.products.shapes
    kept = {name: rank for name, rank in ranks.items() if rank}
    return AdapterWriter(
        path,
        shrinking.prefix,
        shrinking.dtype,
        {module_of(name): shapes[name] for name in kept},
        {module_of(name): rank for name, rank in kept.items()},
        {name: shape for name, shape in shapes.items() if ranks.get(name) is None},
        header,
    )


def _settings(
    config: MergeConfig,
    rule: RankRule | None,
    loras: Sequence[tuple[Adapter, LoraScale]],
    density: float,
    dtype: torch.dtype,
) -> dict[str, object]:
    """Return the settings that the file records; file names without folders."""
    made_for_output = config.calibration is not None or any(one.metadata.is_made_for_output for one, _ in loras)
    return {
        "merged": [
            {"lora": adapter.path.name if adapter.path else f"LoRA {number}", "lora_scale": scale.text}
            for number, (adapter, scale) in enumerate(loras, 1)
        ],
        "merge_method": config.method,
        **({"density": density} if config.method in WITH_DENSITY else {}),
        **({"seed": config.seed} if config.method == "dare" else {}),
        "method": "calibrated" if made_for_output else "plain",
        **({"calibration": config.calibration.name} if config.calibration else {}),
        "dtype": dtype_name(dtype),
        **(rule.facts(0) if rule else {"rank_policy": "exact" if config.exact else "lossless"}),
    }


def _facts(ledger: Ledger, settings: Mapping[str, object]) -> dict[str, str]:
    linear, conv = ledger.highest_ranks()
    errors = {"merge_error": ledger.total().relative_error}
    return extraction_facts(rank=linear, conv_rank=conv, counts=ledger.counts(), errors=errors, settings=settings)
