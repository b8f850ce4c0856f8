"""The deltas of one or several scaled LoRAs, one parameter at a time, as factors where their ranks are low.

Memory and time depend on the ranks: a matrix is built only where the ranks of its factors reach its short side, or
where a file has it dense.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, LoraScale
from lbm_lora.errors import AdapterError
from lbm_lora.factorize import Factors, concatenated, exact_factors, has_matrix_view, rank_bound, to_matrix
from lbm_lora.naming import ParamName, weight_of

ROUNDING = 1e-6
"""Share of a product's largest singular value below which values are the rounding of its factors in fp32."""
LARGEST = 1e12
"""Largest norm of a delta: its square, and that of a delta enlarged by a method, stay within fp32. A network's weights
have norms below 1e4."""


@dataclass(frozen=True)
class Summand:
    """A LoRA and the scale of each of its deltas.

    Attributes:
        scales: scale by param name, for every parameter that the adapter changes.
    """

    adapter: Adapter
    scales: Mapping[ParamName, float]

    @classmethod
    def of(cls, adapter: Adapter, lora_scale: LoraScale | float = 1.0) -> "Summand":
        """The LoRA at a scale."""
        return cls(adapter, LoraScale.parse(lora_scale).by_param(adapter.params))

    def scaled(self) -> Adapter:
        """Return the LoRA with its scales in it: at a scale of 1 it acts as this one does."""
        modules = {
            name: replace(module, alpha=self.scales[weight_of(name)] * module.alpha)
            for name, module in self.adapter.modules.items()
        }
        dense = {name: self.scales[name] * delta.float() for name, delta in self.adapter.dense.items()}
        return replace(self.adapter, modules=modules, dense=dense)

    def term(self, name: ParamName) -> Factors | Tensor | None:
        """Return the scaled delta of a parameter in fp32: factors, or dense in its shape; None without one."""
        scale = self.scales.get(name, 0.0)
        if not scale:
            return None
        module = self.adapter.module_at(name)
        if module is None:
            return scale * self.adapter.dense[name].float()
        factors = module.factors()
        return Factors(scale * factors.up, factors.down)


@dataclass(frozen=True)
class Combine:
    """How the terms of one parameter become one delta.

    Attributes:
        matrices: several factors of one shape in, factors out.
        vectors: several dense deltas of one shape in, one out.
    """

    matrices: Callable[[ParamName, Sequence[Factors]], Factors]
    vectors: Callable[[ParamName, Sequence[Tensor]], Tensor]


def add(_: ParamName, terms: Sequence[Factors]) -> Factors:
    """Return the sum: the ranks add up, until the matrix itself has the fewer values."""
    total = concatenated(terms)
    return total if total.rank < min(total.up.shape[0], total.down.shape[1]) else exact_factors(total.product())


def add_vectors(_: ParamName, terms: Sequence[Tensor]) -> Tensor:
    """Return the sum."""
    return torch.stack(list(terms)).sum(0)


SUM = Combine(add, add_vectors)


@dataclass(frozen=True)
class Products:
    """The combined deltas of LoRAs; each is computed when it is asked for.

    Attributes:
        combine: how terms become one delta; their sum by default.
    """

    summands: tuple[Summand, ...]
    combine: Combine = SUM
    shapes: Mapping[ParamName, tuple[int, ...]] = field(init=False)
    """Shape of every parameter that a LoRA changes, in the order of the files."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shapes", _shapes(self.summands))
        for one in self.summands:
            _check_size(one)

    def matrices(self) -> list[ParamName]:
        """The parameters that at least one LoRA has as factors."""
        return [name for name in self.shapes if any(one.adapter.module_at(name) for one in self.summands)]

    def terms(self, name: ParamName) -> list[Factors | Tensor]:
        """The scaled delta of each LoRA that changes a parameter."""
        return [term for one in self.summands if (term := one.term(name)) is not None]

    def factors(self, name: ParamName) -> Factors | None:
        """Return the combined delta of a weight with a matrix view, as fp32 factors; None where it is zero."""
        terms = [term if isinstance(term, Factors) else exact_factors(to_matrix(term)) for term in self.terms(name)]
        return self.combine.matrices(name, terms) if terms else None

    def dense(self, name: ParamName) -> Tensor | None:
        """Return the combined delta of a parameter in fp32, in its shape; None where it is zero."""
        shape = self.shapes[name]
        if has_matrix_view(shape):
            factors = self.factors(name)
            return None if factors is None else factors.product().reshape(shape)
        terms = [term for term in self.terms(name) if isinstance(term, Tensor)]
        return self.combine.vectors(name, terms) if terms else None

    def norm(self, name: ParamName) -> float:
        """Return the Frobenius norm of the combined delta of a parameter."""
        if has_matrix_view(self.shapes[name]):
            factors = self.factors(name)
            return 0.0 if factors is None else product_norm(factors)
        delta = self.dense(name)
        return 0.0 if delta is None else float(torch.linalg.vector_norm(delta))

    def bound(self, name: ParamName) -> int:
        """Return the highest rank that the combined delta of a matrix can have, before anything is computed."""
        shape, ranks = self.shapes[name], 0
        for one in self.summands:
            module = one.adapter.module_at(name)
            ranks += module.rank if module else rank_bound(shape) if name in one.adapter.dense else 0
        return min(ranks, rank_bound(shape))


def product_norm(factors: Factors) -> float:
    """Return ||up @ down||_F without the product, to fp32's precision also where the terms of a sum cancel."""
    if factors.rank >= min(factors.up.shape[0], factors.down.shape[1]):
        return float(torch.linalg.vector_norm(factors.product()))
    left, right = torch.linalg.qr(factors.up, mode="r").R, torch.linalg.qr(factors.down.mT, mode="r").R
    return float(torch.linalg.vector_norm(left @ right.mT))


def difference(total: Factors | None, stored: Factors | None) -> float:
    """Return ||total - stored||_F of two products; None is zero."""
    terms = [] if total is None else [total]
    if stored is not None:
        terms.append(Factors(-stored.up.float(), stored.down.float()))
    return product_norm(concatenated(terms)) if terms else 0.0


def _check_size(summand: Summand) -> None:
    for name in summand.adapter.params:
        term = summand.term(name)
        parts = () if term is None else (term.up, term.down) if isinstance(term, Factors) else (term,)
        size = math.prod(float(torch.linalg.vector_norm(part, dtype=torch.float64)) for part in parts)
        if term is not None and not size <= LARGEST:
            raise AdapterError(
                f"{name}: {summand.adapter.label} at scale {summand.scales[name]:g} makes a delta of norm {size:.1e}, "
                f"the limit is {LARGEST:g}. Use a smaller scale, if the LoRA itself is not damaged."
            )


def _shapes(summands: Iterable[Summand]) -> dict[ParamName, tuple[int, ...]]:
    found: dict[ParamName, tuple[int, ...]] = {}
    owners: dict[ParamName, Adapter] = {}
    for summand in summands:
        adapter = summand.adapter
        for name in adapter.params:
            shape = adapter.shape_of(name) or ()
            if found.setdefault(name, shape) != shape:
                raise AdapterError(
                    f"{name}: {owners[name].label} has shape {found[name]}, {adapter.label} has {shape}. "
                    "Are both for one network?"
                )
            owners.setdefault(name, adapter)
    return found
