"""Merge scaled LoRAs into one, in product space: the ranks of every delta first, then its factors.

Never the factors separately: s A1 B1 + t A2 B2 is not (s A1 + t A2) (s B1 + t B2), which adds cross terms.

An extraction records the checkpoint that it starts from and the one that it leads to. A LoRA made on that tuned
checkpoint starts where the extraction ends, so both together start at the extraction's base: a chain base -> tuned ->
further tuned.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lbm_lora.adapter import (
    FORMAT,
    Adapter,
    AdapterBuilder,
    AdapterMetadata,
    Ledger,
    LoraScale,
    Status,
    common_dtype,
    extraction_facts,
    module_bytes,
    precision,
    store_outcomes,
    stored_bytes,
)
from lbm_lora.adapter.metadata import SETTINGS_KEY
from lbm_lora.checkpoint import dtype_name
from lbm_lora.choices import MergeMethod
from lbm_lora.combine.methods import DENSITY, combine_by
from lbm_lora.combine.products import Products, Summand, product_norm
from lbm_lora.combine.shrink import Shrinking, chooser_of
from lbm_lora.errors import AdapterError, ConfigError, Option, WrongBaseError, give_one, listing
from lbm_lora.factorize import Factors, FixedRank, product_svd, rank_bound
from lbm_lora.naming import ParamName, module_of
from lbm_lora.progress import SILENT, Progress, warn
from lbm_lora.ranks import Choice, FixedRanks, OutputNorm, RankOptions, RankRule, rank_rule, unweighted
from lbm_lora.runtime import ordered_map

TOLERANCE = 3e-7
"""Share of the norms of a delta's terms that is lost with the singular values of their rounding in fp32."""

Ranks = Mapping[ParamName, int | None]
"""Rank of each matrix; None is the dense delta, 0 nothing."""

_SHOWN = 8  # digits of a fingerprint in messages
WITH_DENSITY = ("ties", "dare", "knots")
"""Methods that keep a share of the entries."""


@dataclass(frozen=True, kw_only=True)
class MergeOptions:
    """Options of a merge; see the verb `merge`. `calibration` names the statistics that weigh errors, if any."""

    rank: int | None = None
    conv_rank: int | None = None
    max_size: str | None = None
    max_error: float | None = None
    max_output_error: float | None = None
    exact: bool = False
    method: MergeMethod = "sum"
    density: float | None = None
    seed: int = 0
    calibration: Path | None = None
    save_precision: str | None = None


_LIMITS = ("rank", "max_size", "max_error", "max_output_error")


def merge_rule(options: MergeOptions) -> RankRule | None:
    """Return the rule that the options select; None if nothing is to be lost."""
    asked = [name for name in ("exact", *_LIMITS) if getattr(options, name) not in (None, False)]
    if len(asked) > 1:
        raise give_one(asked[0], asked[1], "choose the ranks")
    if options.exact and options.method != "sum":
        raise ConfigError(
            Option("exact"), " keeps the sum, ", Option("method"), f" {options.method} changes it. Give one of them."
        )
    if options.conv_rank is not None and options.rank is None:
        raise ConfigError(Option("conv_rank"), " needs ", Option("rank"), ".")
    if options.calibration is not None and (options.exact or not asked):
        raise ConfigError(
            Option("calibration"), " weighs what is lost, but nothing is lost: add ", Option("rank"), ", ",
            Option("max_size"), " or ", Option("max_output_error"), ".",
        )  # fmt: skip
    _check_density(options)
    if not asked or options.exact:
        return None
    ranks = RankOptions(
        rank=options.rank,
        conv_rank=options.conv_rank,
        max_size=() if options.max_size is None else (options.max_size,),
        max_error=options.max_error,
        max_output_error=options.max_output_error,
    )
    measure = Option("calibration", "STATISTICS")
    return rank_rule(ranks, is_calibrated=options.calibration is not None, has_images=False, measure=measure)


def _check_density(options: MergeOptions) -> None:
    if options.density is None:
        return
    if options.method not in WITH_DENSITY:
        raise ConfigError(
            Option("density"), " is for ", Option("method"), f" ties, dare and knots, not for {options.method}."
        )
    if not 0 < options.density <= 1:
        raise ConfigError(Option("density"), f" must be above 0 and at most 1, got {options.density:g}.")


@dataclass(frozen=True, kw_only=True)
class MergedBase:
    """The base of a merged LoRA, and the tuned model that it leads to.

    Attributes:
        fingerprint, tensors: of the base; empty if no LoRA records its base.
        tuned: fingerprint of the checkpoint that it leads to; empty if there is none.
        labels: the LoRAs of a chain, from the base on; empty if all have one base.
    """

    fingerprint: str
    tensors: str
    tuned: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MergedAdapter:
    """The result of a merge.

    Attributes:
        adapter: the LoRA if it was kept in memory; None if it was written.
    """

    adapter: Adapter | None
    ledger: Ledger


def merge_adapters(
    options: MergeOptions,
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
        options: how they are merged; its `calibration` is a name.
        rule: for the ranks; None if nothing is to be lost.
        path: the file to write; None for a LoRA that is kept in memory.
        norm: output norm, if what is lost is weighted by it.
    """
    density = DENSITY if options.density is None else options.density
    adapters = [adapter for adapter, _ in loras]
    shrinking = Shrinking(
        products=Products(
            tuple(Summand.of(*one) for one in loras), combine_by(options.method, density=density, seed=options.seed)
        ),
        dtype=_stored_dtype(options, adapters),
        prefix=next((adapter.prefix for adapter in adapters if adapter.prefix), ""),
        weights_of=norm.weights_of if norm else unweighted,
        left_out={},
        keeps_factors=options.exact,
    )
    settings = _settings(options, rule, loras, density, shrinking.dtype)
    header = AdapterMetadata(
        FORMAT, base.fingerprint, base.tensors, base.tuned, facts={SETTINGS_KEY: json.dumps(settings)}
    )
    ranks = _ranks(options, rule, shrinking, header, norm, progress)
    progress.start(len(shrinking.products.shapes), "merging")
    choice = Choice(ranks=dict(ranks), nbytes=0, error_sq=0.0)
    with ExitStack() as stack:
        store = shrinking.store(path, ranks, header, stack)
        (ledger,) = store_outcomes(shrinking.outcomes([choice]), [store], progress)
        if not ledger.of(Status.LORA, Status.DENSE):
            raise AdapterError("nothing is left of the LoRAs: at these scales they cancel out, or all scales are 0.")
        linear, conv = ledger.highest_ranks()
        errors = {"merge_error": ledger.total().relative_error}
        facts = extraction_facts(rank=linear, conv_rank=conv, counts=ledger.counts(), errors=errors, settings=settings)
        store.metadata = replace(header, facts=facts)
    return MergedAdapter(adapter=store.adapter() if isinstance(store, AdapterBuilder) else None, ledger=ledger)


def _stored_dtype(options: MergeOptions, adapters: Sequence[Adapter]) -> torch.dtype:
    if options.save_precision is not None:
        return precision(options.save_precision)
    return torch.float32 if options.exact else common_dtype(adapters)


def _ranks(
    options: MergeOptions,
    rule: RankRule | None,
    shrinking: Shrinking,
    header: AdapterMetadata,
    norm: OutputNorm | None,
    progress: Progress,
) -> Ranks:
    if options.exact:
        return added_ranks(shrinking)
    if rule is None or isinstance(rule, FixedRanks):
        return lossless_ranks(shrinking, rule.ranks[0] if rule else None, progress)
    return chosen_ranks(shrinking, rule, header, norm, progress)


def _settings(
    options: MergeOptions,
    rule: RankRule | None,
    loras: Sequence[tuple[Adapter, LoraScale]],
    density: float,
    dtype: torch.dtype,
) -> dict[str, object]:
    made_for_output = options.calibration is not None or any(one.metadata.is_made_for_output for one, _ in loras)
    return {
        "merged": [
            {"lora": adapter.path.name if adapter.path else f"LoRA {number}", "lora_scale": scale.text}
            for number, (adapter, scale) in enumerate(loras, 1)
        ],
        "merge_method": options.method,
        **({"density": density} if options.method in WITH_DENSITY else {}),
        **({"seed": options.seed} if options.method == "dare" else {}),
        "method": "calibrated" if made_for_output else "plain",
        **({"calibration": options.calibration.name} if options.calibration else {}),
        "dtype": dtype_name(dtype),
        **(rule.facts(0) if rule else {"rank_policy": "exact" if options.exact else "lossless"}),
    }


def lossless_ranks(shrinking: Shrinking, cap: FixedRank | None = None, progress: Progress = SILENT) -> Ranks:
    """Return the numerical rank of each matrix: directions that are only rounding of the terms, as where two LoRAs
    share them or cancel, take none. A matrix whose factors would take more bytes is dense.
    """
    names = shrinking.products.matrices()
    progress.start(len(names), "finding ranks")

    def rank_of(name: ParamName) -> int | None:
        rank, highest = _numerical_rank(shrinking, name), cap.rank_of(shrinking.products.shapes[name]) if cap else None
        return _cheaper(shrinking, name, rank if highest is None else min(rank, highest))

    ranks: dict[ParamName, int | None] = {}
    for name, rank in zip(names, ordered_map(rank_of, names), strict=True):
        ranks[name] = rank
        progress.advance()
    return ranks


def added_ranks(shrinking: Shrinking) -> Ranks:
    """Return the ranks of the concatenated factors: their sum, or the dense delta where that takes fewer bytes."""
    products = shrinking.products
    return {name: _cheaper(shrinking, name, products.bound(name)) for name in products.matrices()}


def chosen_ranks(
    shrinking: Shrinking,
    rule: RankRule,
    header: AdapterMetadata,
    norm: OutputNorm | None = None,
    progress: Progress = SILENT,
) -> Ranks:
    """Return the ranks that a rule chooses for all layers together.

    Args:
        header: metadata of the file, as far as it is known.
    """
    chooser = chooser_of(shrinking, [header], norm, progress, can_leave_out=False)
    (found,) = chooser.choose(rule, None)
    return found.choice.ranks


def _numerical_rank(shrinking: Shrinking, name: ParamName) -> int:
    factors = shrinking.products.factors(name)
    if factors is None:
        return 0
    allowed = TOLERANCE * sum(map(_norm, shrinking.products.terms(name)))
    squares = product_svd(factors).values.double().square()
    left = squares.flip(0).cumsum(0).flip(0).sqrt()  # the error of ranks 0, 1, ...
    return int((left > allowed).sum())


def _norm(term: Factors | Tensor) -> float:
    return float(torch.linalg.vector_norm(term)) if isinstance(term, Tensor) else product_norm(term)


def _cheaper(shrinking: Shrinking, name: ParamName, rank: int) -> int | None:
    """Return a rank, or None where the dense delta takes fewer bytes."""
    shape = shrinking.products.shapes[name]
    if not rank:
        return 0
    factors = module_bytes(shrinking.prefix, module_of(name), shape, rank, shrinking.dtype)
    dense = stored_bytes(shrinking.prefix, name, shape, shrinking.dtype)
    return rank if rank < rank_bound(shape) and factors < dense else None


def merged_base(summands: Sequence[Summand], *, allow_other_base: bool = False) -> MergedBase:
    """Return the one base of LoRAs; their order does not matter. One without a fingerprint gives a warning.

    Args:
        allow_other_base: warn instead of failing, and keep the base of the first LoRA that records one.
    """
    adapters = [one.adapter for one in summands]
    for adapter in adapters:
        if not adapter.metadata.base_fingerprint:
            warn(f"{adapter.label} does not say which base it was made from, so its base cannot be checked.")
    known = [adapter for adapter in adapters if adapter.metadata.base_fingerprint]
    if not known:
        return MergedBase(fingerprint="", tensors="", tuned="")
    chain = _chain(known)
    if chain is None:
        _refuse(known, allow_other_base=allow_other_base)
        return MergedBase(fingerprint=_base(known[0]), tensors=known[0].metadata.base_tensors, tuned="")
    is_complete = len(known) == len(adapters) == len(chain) and all(_is_unscaled(one) for one in summands)
    return MergedBase(
        fingerprint=_base(chain[0]),
        tensors=chain[0].metadata.base_tensors,
        tuned=chain[-1].metadata.tuned_fingerprint if is_complete else "",
        labels=tuple(adapter.label for adapter in chain) if len({_base(one) for one in known}) > 1 else (),
    )


def _chain(adapters: Sequence[Adapter]) -> list[Adapter] | None:
    """Return one LoRA for each step from the common base on; None if there are several bases that no steps connect."""
    bases = {_base(adapter) for adapter in adapters}
    steps = {
        _base(adapter): adapter
        for adapter in reversed(adapters)
        if adapter.metadata.tuned_fingerprint in bases - {_base(adapter)}
    }
    led_to = {adapter.metadata.tuned_fingerprint for adapter in steps.values()}
    starts = [base for base in bases if base not in led_to]
    if len(starts) != 1:
        return None
    chain: list[Adapter] = []
    base, left = starts[0], set(bases)
    while base in steps and base in left:
        left.remove(base)
        chain.append(steps[base])
        base = steps[base].metadata.tuned_fingerprint
    if left != {base}:
        return None
    return [*chain, next(adapter for adapter in adapters if _base(adapter) == base)]


def _refuse(adapters: Sequence[Adapter], *, allow_other_base: bool) -> None:
    """Name the LoRA of each base; where it is a step, also what it leads to."""
    first: dict[str, Adapter] = {}
    for adapter in adapters:
        first.setdefault(_base(adapter), adapter)
    found = listing(f"{adapter.label} from {base[:_SHOWN]}{_leads_to(adapter)}" for base, adapter in first.items())
    problem = (
        f"the LoRAs were made from different bases: {found}. A LoRA that was made on a tuned checkpoint merges with "
        "the extraction of that checkpoint."
    )
    if not allow_other_base:
        raise WrongBaseError(f"{problem} To merge them all the same: ", Option("allow_other_base"), ".")
    warn(problem)


def _leads_to(adapter: Adapter) -> str:
    tuned = adapter.metadata.tuned_fingerprint
    return f" to {tuned[:_SHOWN]}" if tuned else ""


def _base(adapter: Adapter) -> str:
    return adapter.metadata.base_fingerprint


def _is_unscaled(summand: Summand) -> bool:
    return all(scale == 1 for scale in summand.scales.values())
