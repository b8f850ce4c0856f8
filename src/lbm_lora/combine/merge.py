"""Merge scaled LoRAs into one, in product space: the ranks of every delta first, then its factors.

Never the factors separately: s A1 B1 + t A2 B2 is not (s A1 + t A2) (s B1 + t B2), which adds cross terms.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from lbm_lora.adapter import (
    AdapterBuilder,
    AdapterWriter,
    Ledger,
    LedgerRow,
    LoraModule,
    Status,
    module_bytes,
    stored_bytes,
)
from lbm_lora.combine.products import Products, difference, product_norm
from lbm_lora.errors import AdapterError
from lbm_lora.factorize import (
    Factors,
    Measure,
    dense_dtype,
    down_shape,
    factors_of,
    product_svd,
    rank_bound,
    rounded,
    stored_factors,
    up_shape,
)
from lbm_lora.naming import ParamName, module_of
from lbm_lora.parallel import ordered_map
from lbm_lora.progress import SILENT, Progress

TOLERANCE = 3e-7
"""Share of the norms of a delta's terms that is lost with the singular values of their rounding in fp32."""

Ranks = Mapping[ParamName, int | None]
"""Rank of each matrix; None is the dense delta, 0 nothing."""


def lossless_ranks(products: Products, dtype: torch.dtype, *, prefix: str, progress: Progress = SILENT) -> Ranks:
    """Return the numerical rank of each matrix: directions that are only rounding of the terms, as where two LoRAs
    share them or cancel, take none. A matrix whose factors would take more bytes is dense.
    """
    names = products.matrices()
    progress.start(len(names), "finding ranks")

    def rank_of(name: ParamName) -> int | None:
        return _within(products, name, _numerical_rank(products, name), dtype, prefix)

    ranks: dict[ParamName, int | None] = {}
    for name, rank in zip(names, ordered_map(rank_of, names), strict=True):
        ranks[name] = rank
        progress.advance()
    return ranks


def added_ranks(products: Products, dtype: torch.dtype, *, prefix: str) -> Ranks:
    """Return the ranks of the concatenated factors: their sum, or the dense delta where that takes fewer bytes."""
    return {name: _within(products, name, products.bound(name), dtype, prefix) for name in products.matrices()}


def _numerical_rank(products: Products, name: ParamName) -> int:
    factors = products.factors(name)
    if factors is None:
        return 0
    terms = [term for term in products.terms(name) if isinstance(term, Factors)]
    dense = sum(float(torch.linalg.vector_norm(term)) for term in products.terms(name) if not isinstance(term, Factors))
    allowed = TOLERANCE * (sum(map(product_norm, terms)) + dense)
    squares = product_svd(factors).values.double().square()
    left = squares.flip(0).cumsum(0).flip(0).sqrt()  # the error of ranks 0, 1, ...
    return int((left > allowed).sum())


def _within(products: Products, name: ParamName, rank: int, dtype: torch.dtype, prefix: str) -> int | None:
    shape = products.shapes[name]
    if not rank:
        return 0
    factors = module_bytes(prefix, module_of(name), shape, rank, dtype)
    return rank if rank < rank_bound(shape) and factors < stored_bytes(prefix, name, shape, dtype) else None


def store_merged(
    products: Products,
    ranks: Ranks,
    store: AdapterWriter | AdapterBuilder,
    dtype: torch.dtype,
    *,
    is_exact: bool = False,
    progress: Progress = SILENT,
) -> Ledger:
    """Add every combined delta to a file or an adapter in memory, and measure it as it is stored.

    Args:
        ranks: of all matrices.
        dtype: the stored dtype.
        is_exact: keep the factors as they are, without an SVD; the ranks are those that `added_ranks` gives.

    Returns:
        A row for each parameter of the LoRAs; deltas that cancel are `unchanged`.

    Raises:
        AdapterError: nothing is left of the LoRAs.
        InputError: a value leaves the range of `dtype`.
    """
    names = list(products.shapes)
    progress.start(len(names), "merging")

    def work(name: ParamName) -> tuple[LedgerRow, LoraModule | torch.Tensor | None]:
        rank = ranks.get(name)
        return _dense(products, name, dtype) if rank is None else _module(products, name, rank, dtype, is_exact)

    rows: list[LedgerRow] = []
    for row, stored in ordered_map(work, names):
        if isinstance(stored, LoraModule):
            store.add_module(stored)
        elif stored is not None:
            store.add_dense(row.name, stored)
        rows.append(row)
        progress.advance()
    ledger = Ledger(tuple(rows))
    if not ledger.of(Status.LORA, Status.DENSE):
        raise AdapterError("nothing is left of the LoRAs: at these scales they cancel out, or all scales are 0.")
    return ledger


def _module(
    products: Products, name: ParamName, rank: int, dtype: torch.dtype, is_exact: bool
) -> tuple[LedgerRow, LoraModule | None]:
    shape, factors = products.shapes[name], products.factors(name)
    if factors is None or not rank:
        return _row(name, shape, Status.UNCHANGED, 0.0 if factors is None else product_norm(factors)), None
    kept = stored_factors(factors.up, factors.down, dtype) if is_exact else None
    kept = kept or factors_of(product_svd(factors).first(rank), dtype)
    module = LoraModule(
        module_of(name), kept.down.reshape(down_shape(shape, rank)), kept.up.reshape(up_shape(shape, rank)), float(rank)
    )
    row = _row(name, shape, Status.LORA, product_norm(factors), difference(factors, kept))
    return replace(row, rank=rank), module


def _dense(products: Products, name: ParamName, dtype: torch.dtype) -> tuple[LedgerRow, torch.Tensor | None]:
    shape, delta = products.shapes[name], products.dense(name)
    if delta is None or not delta.any():
        return _row(name, shape, Status.UNCHANGED, 0.0), None
    stored = rounded(delta, dense_dtype(dtype))
    lost = float(torch.linalg.vector_norm(delta - stored.float()))
    return _row(name, shape, Status.DENSE, float(torch.linalg.vector_norm(delta)), lost), stored


def _row(name: ParamName, shape: tuple[int, ...], status: Status, size: float, error: float | None = None) -> LedgerRow:
    lost = size if error is None else error
    measure = Measure(numel=torch.Size(shape).numel(), delta_sq=size**2, error_sq=lost**2)
    return LedgerRow(name=name, status=status, reason="", shape=shape, rank=None, measure=measure)
