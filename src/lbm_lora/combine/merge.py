"""Merge scaled LoRAs into one, in product space: the ranks of every delta first, then its factors.

Never the factors separately: s A1 B1 + t A2 B2 is not (s A1 + t A2) (s B1 + t B2), which adds cross terms.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lbm_lora.adapter import (
    AdapterBuilder,
    AdapterMetadata,
    AdapterWriter,
    Ledger,
    Status,
    module_bytes,
    store_outcomes,
    stored_bytes,
)
from lbm_lora.combine.chooser import chooser_of
from lbm_lora.combine.products import product_norm
from lbm_lora.combine.shrink import Shrinking
from lbm_lora.errors import AdapterError
from lbm_lora.factorize import Factors, FixedRank, product_svd, rank_bound
from lbm_lora.naming import ParamName, module_of
from lbm_lora.parallel import ordered_map
from lbm_lora.progress import SILENT, Progress
from lbm_lora.ranks import Choice, OutputNorm, RankRule

TOLERANCE = 3e-7
"""Share of the norms of a delta's terms that is lost with the singular values of their rounding in fp32."""

Ranks = Mapping[ParamName, int | None]
"""Rank of each matrix; None is the dense delta, 0 nothing."""


def lossless_ranks(shrinking: Shrinking, cap: FixedRank | None = None, progress: Progress = SILENT) -> Ranks:
    """Return the numerical rank of each matrix: directions that are only rounding of the terms, as where two LoRAs
    share them or cancel, take none. A matrix whose factors would take more bytes is dense.

    Args:
        cap: the highest ranks, with which it is no longer lossless.
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
        norm: output norm, if errors are weighted by it; that of `shrinking`.
    """
    chooser = chooser_of(shrinking, [header], norm, progress, can_leave_out=False)
    (found,) = chooser.choose(rule, None)
    return found.choice.ranks


def store_merged(
    shrinking: Shrinking, ranks: Ranks, store: AdapterWriter | AdapterBuilder, progress: Progress = SILENT
) -> Ledger:
    """Add every combined delta to a file or an adapter in memory, and measure it as it is stored.

    Returns:
        A row for each parameter of the LoRAs.
    """
    progress.start(len(shrinking.products.shapes), "merging")
    choice = Choice(ranks=dict(ranks), nbytes=0, error_sq=0.0)
    (ledger,) = store_outcomes(shrinking.outcomes([choice]), [store], progress)
    if not ledger.of(Status.LORA, Status.DENSE):
        raise AdapterError("nothing is left of the LoRAs: at these scales they cancel out, or all scales are 0.")
    return ledger


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
