"""Ways to combine the terms of a matrix other than their sum: less interference, in the shared core of the factors.

All terms of a matrix lie in the span of their factors, so orthonormal bases U of their columns and V of their rows
turn each into a small core matrix, term = U core V^T, without loss (Core Space: Panariello et al., "Accurate and
Efficient Low-Rank Model Merging in Core Space", 2025, arXiv 2509.17786, eq. 4 to 7). A method combines the cores.

| method | what it does with the terms t |
| --- | --- |
| ties | TIES in the core: trim each to its largest entries, elect each entry's sign, average those that agree |
| dare | DARE in the core: drop entries at random, enlarge the others by 1 / density, add up |
| knots | KnOTS: TIES on the terms' coordinates in the joint left basis U S |
| core | TSV in the core: make the singular vectors of all terms orthogonal to one another, add up |

Yadav et al., "TIES-Merging", 2023, arXiv 2306.01708; Yu et al., "Language Models are Super Mario" (DARE), 2023, arXiv
2311.03099; Stoica et al., "Model merging with SVD to tie the Knots", 2024, arXiv 2410.19735; Gargiulo et al., "Task
Singular Vectors", 2024, arXiv 2412.00081.

How a file splits a delta into `up` and `down` and in which order the files come is arbitrary, so neither matters here.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import xxhash
from jaxtyping import Float
from torch import Tensor

from lbm_lora.choices import MergeMethod
from lbm_lora.combine.products import ROUNDING, SUM, Combine, add_vectors, product_norm
from lbm_lora.factorize import Factors, TruncatedSVD, concatenated, exact_svd, product_svd
from lbm_lora.naming import ParamName

DENSITY = 0.5
"""Share of the entries that ties, dare and knots keep of each term, where none is given."""


def combine_by(method: MergeMethod, *, density: float = DENSITY, seed: int = 0) -> Combine:
    """Return how the terms of a parameter become one delta.

    Vectors, which have no core, are combined entry by entry: by TIES for ties and knots, by DARE, or added up.

    Args:
        density: share of entries kept of each term, above 0 and up to 1; for ties, dare and knots.
        seed: seed of the entries that dare drops.
    """
    if method == "sum":
        return SUM

    def matrices(name: ParamName, terms: Sequence[Factors]) -> Factors:
        ordered = sorted(terms, key=product_norm, reverse=True)
        if method == "knots":
            return knots(ordered, density)
        if method == "core":
            return orthogonalized(ordered)
        if method == "dare":
            return in_core(ordered, lambda cores: dare(cores, density, _draw(name, seed)))
        return in_core(ordered, lambda cores: ties(cores, density))

    def vectors(name: ParamName, terms: Sequence[Tensor]) -> Tensor:
        if method == "core":
            return add_vectors(name, terms)
        if method == "dare":
            ordered = sorted(terms, key=lambda term: float(torch.linalg.vector_norm(term)), reverse=True)
            return dare(ordered, density, _draw(name, seed))
        return ties(terms, density)

    return Combine(matrices, vectors)


def ties(terms: Sequence[Tensor], density: float) -> Tensor:
    """Return the disjoint mean of trimmed terms (TIES, algorithm 1, with scaling 1).

    Args:
        density: share of the entries, the largest ones, that each term keeps.
    """
    trimmed = torch.stack([_largest(term, density) for term in terms])
    elected = trimmed.sum(0).sign()
    agreeing = (trimmed.sign() == elected) & (trimmed != 0)
    return (trimmed * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)


def dare(terms: Sequence[Tensor], density: float, generator: torch.Generator) -> Tensor:
    """Return the sum of terms whose entries are kept with probability `density` and then divided by it (DARE, eq. 2).

    The expectation is the sum of the terms.
    """
    total = torch.zeros_like(terms[0])
    for term in terms:
        total += term * (torch.rand(term.shape, generator=generator) < density) / density
    return total


@dataclass(frozen=True)
class Core:
    """Terms in their shared bases: term = left @ cores[t] @ right."""

    left: Float[Tensor, "out p"]
    cores: Sequence[Float[Tensor, "p q"]]
    right: Float[Tensor, "q columns"]


def core_of(terms: Sequence[Factors]) -> Core:
    """Return the terms in the bases that the SVDs of all `up` side by side and all `down` stacked give.

    Each term is first put as U sqrt(S), sqrt(S) V^T.
    """
    even = [_even(term) for term in terms]
    total = concatenated(even)
    left, right = _basis(total.up), _basis(total.down.mT).mT
    return Core(left, [(left.mT @ term.up) @ (term.down @ right.mT) for term in even], right)


def in_core(terms: Sequence[Factors], merge: Callable[[Sequence[Tensor]], Tensor]) -> Factors:
    """Return the product whose core is that of all terms merged."""
    core = core_of(terms)
    return Factors(core.left @ merge(core.cores), core.right)


def orthogonalized(terms: Sequence[Factors]) -> Factors:
    """Return the sum of the terms after their singular vectors were made orthogonal to those of the other terms.

    Both sides take the nearest orthonormal vectors to all terms' singular vectors together (orthogonal Procrustes), and
    each pair keeps its singular value. Terms without common directions are just added.
    """
    core = core_of(terms)
    bound = min(len(core.left.mT), len(core.right))
    most = bound // len(terms) if sum(map(_rank, core.cores)) > bound else bound  # of each, where all do not fit
    svds = [exact_svd(one, min(_rank(one), max(most, 1))) for one in core.cores]
    left = _orthonormal(torch.cat([svd.left for svd in svds], dim=1))
    right = _orthonormal(torch.cat([svd.right.mT for svd in svds], dim=1))
    values = torch.cat([svd.values for svd in svds])
    return Factors((core.left @ left) * values, right.mT @ core.right)


def knots(terms: Sequence[Factors], density: float) -> Factors:
    """Return U S V^T, where U S [V_1 ... V_T]^T is the SVD of the terms side by side and V merges the V_t by TIES.

    The SVD comes from the factors: with QR of the joint `up` and of each `down`, only a small matrix is left.
    """
    even = [_even(term) for term in terms]
    joint = torch.linalg.qr(torch.cat([term.up for term in even], dim=1))
    sides = [torch.linalg.qr(term.down.mT) for term in even]
    small = joint.R @ torch.block_diag(*(side.R.mT for side in sides))
    found = exact_svd(small, min(small.shape))
    widths = [side.Q.shape[1] for side in sides]
    parts = found.right.split(widths, dim=1)
    aligned = [part @ side.Q.mT for part, side in zip(parts, sides, strict=True)]
    return Factors((joint.Q @ found.left) * found.values, ties(aligned, density))


def _even(term: Factors) -> Factors:
    svd = _significant(product_svd(term))
    root = svd.values.sqrt()
    return Factors(svd.left * root, root[:, None] * svd.right)


def _significant(svd: TruncatedSVD) -> TruncatedSVD:
    above = svd.values > ROUNDING * svd.values[:1]
    return svd.first(max(int(above.sum()), 1))


def _basis(columns: Float[Tensor, "n k"]) -> Float[Tensor, "n p"]:
    return _significant(exact_svd(columns, min(columns.shape))).left


def _rank(core: Tensor) -> int:
    values = torch.linalg.svdvals(core)
    return max(int((values > ROUNDING * values[:1]).sum()), 1)


def _orthonormal(vectors: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Return the nearest matrix with orthonormal columns, the polar factor; k is at most n."""
    found = exact_svd(vectors, vectors.shape[1])
    return found.left @ found.right


def _largest(term: Tensor, density: float) -> Tensor:
    """Return a term with only its largest entries: a share `density` of them, at least one."""
    flat = term.abs().flatten()
    count = max(1, math.ceil(density * flat.numel()))
    if count >= flat.numel():
        return term
    least = flat.kthvalue(flat.numel() - count + 1).values
    return torch.where(term.abs() >= least, term, torch.zeros_like(term))


def _draw(name: ParamName, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(f"{seed} {name}".encode()) >> 1)
