"""How two files differ, tensor by tensor: two LoRAs from their factors alone, two checkpoints in one pass."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor

from lbm_lora.adapter import Adapter
from lbm_lora.blocks import flat_blocks, squares
from lbm_lora.checkpoint import Checkpoint, Component, Fingerprint, differing
from lbm_lora.factorize import Factors
from lbm_lora.fidelity.weights import block_of, names_in_order
from lbm_lora.naming import DENOISER_PREFIX, ParamName
from lbm_lora.progress import SILENT, Progress
from lbm_lora.report.inspection.facts import layer_of, squared_norm, wide
from lbm_lora.report.inspection.values import BlockDifference, Difference, Fit, Match, TensorDifference
from lbm_lora.runtime import ordered_map


@dataclass(frozen=True)
class Sums:
    """Sums over the values of one parameter, or several: of first^2, second^2, (first - second)^2, first * second."""

    first: float = 0.0
    second: float = 0.0
    between: float = 0.0
    product: float = 0.0
    largest: float = math.nan

    @property
    def relative(self) -> float:
        if not self.first:
            return self.between if not self.between or math.isnan(self.between) else math.inf
        return math.sqrt(self.between / self.first)

    @property
    def cosine(self) -> float:
        both = math.sqrt(self.first * self.second)
        if both:
            return max(-1.0, min(1.0, self.product / both)) if math.isfinite(both) else math.nan
        return 1.0 if self.first == self.second else 0.0


def total(parts: Iterable[Sums]) -> Sums:
    several = list(parts)
    names = ("first", "second", "between", "product")
    return Sums(*(math.fsum(getattr(one, name) for one in several) for name in names))


def alone(first: float, second: float) -> Sums:
    """The sums of a parameter whose counterpart counts as 0."""
    return Sums(first, second, first + second, 0.0)


def of_factors(first: Factors, second: Factors) -> Sums:
    """The sums of two products, never built: in fp64, the difference keeps 8 digits of the products' norms."""
    norms, product = (inner(first, first), inner(second, second)), inner(first, second)
    between = norms[0] + norms[1] - 2 * product
    return Sums(*norms, between if math.isnan(between) else max(0.0, between), product)


def inner(one: Factors, other: Factors) -> float:
    """The inner product of two products, from up^T up' and down down'^T, which are as small as the ranks."""
    ups = one.up.mT.double() @ other.up.double()
    found = (ups * (one.down.double() @ other.down.mT.double())).sum().item()
    return found if math.isfinite(found) else math.nan


def of_tensors(one: Tensor, other: Tensor) -> Sums:
    """The sums of two tensors of equal shape, block by block in fp32."""
    first = second = between = product = largest = 0.0
    for left, right in flat_blocks(one.contiguous(), other.contiguous()):
        a, b = wide(left), wide(right)
        gap = a - b
        first += squares(a)
        second += squares(b)
        between += squares(gap)
        product += torch.dot(a.double(), b.double()).item()
        largest = max(largest, gap.abs().max().item()) if gap.numel() else largest
    return Sums(first, second, between, product, largest)


def adapter_difference(first: Adapter, second: Adapter, progress: Progress = SILENT) -> Difference:
    """Compare the deltas of two LoRAs, each with its scaling."""
    names = _union(first.params, second.params)

    def compared(name: ParamName) -> tuple[Match, Sums]:
        shapes = first.shape_of(name), second.shape_of(name)
        if None in shapes or shapes[0] != shapes[1]:
            return _unlike(*shapes), alone(_energy_of(first, name), _energy_of(second, name))
        if _same_delta(first, second, name):
            both = _energy_of(first, name)
            return "same", Sums(both, both, 0.0, both)
        one, other = first.module_at(name), second.module_at(name)
        if one is not None and other is not None:
            return "different", of_factors(one.factors(), other.factors())
        deltas = [adapter.delta(name) for adapter in (first, second)]
        return "different", replace(of_tensors(*cast(list[Tensor], deltas)), largest=math.nan)

    return _difference("deltas", names, compared, progress)


def checkpoint_difference(first: Checkpoint, second: Checkpoint, progress: Progress = SILENT) -> Difference:
    """Compare the tensors of two checkpoints by their keys, in fp32; an LBM's denoiser by its parameters."""
    ones, others = (
        {ParamName(key.removeprefix(DENOISER_PREFIX)): key for key in checkpoint.specs}
        for checkpoint in (first, second)
    )
    in_denoiser, beside = (
        _union(*([name for name, key in keys.items() if (name != key) is inside] for keys in (ones, others)))
        for inside in (True, False)
    )

    def compared(name: ParamName) -> tuple[Match, Sums]:
        one = first.read(ones[name]) if name in ones else None
        other = second.read(others[name]) if name in others else None
        if one is None or other is None or one.shape != other.shape:
            return _unlike(one, other), alone(
                *(0.0 if tensor is None else squared_norm(tensor) for tensor in (one, other))
            )
        return "same" if _same_bits(one, other) else "different", of_tensors(one, other)

    return _difference("tensors", [*in_denoiser, *beside], compared, progress)


def fit_of(adapter: Adapter, component: Component, found: Fingerprint) -> Fit:
    """Return whether a LoRA's names, shapes and base are those of a checkpoint's component.

    Args:
        found: fingerprint of the component.
    """
    unmatched = tuple(name for name in adapter.params if name not in component)
    mismatched = tuple(
        name for name in adapter.params if name in component and adapter.shape_of(name) != component.specs[name].shape
    )
    metadata = adapter.metadata
    is_other = bool(metadata.base_fingerprint) and found.digest != metadata.base_fingerprint
    is_tuned = is_other and found.digest == metadata.tuned_fingerprint
    return Fit(
        matched=len(adapter.params) - len(unmatched) - len(mismatched),
        unmatched=unmatched,
        mismatched=mismatched,
        base="tuned" if is_tuned else "other" if is_other else "base" if metadata.base_fingerprint else "unknown",
        differing=tuple(differing(metadata.base_tensors, found)) if is_other and not is_tuned else (),
    )


def _difference(
    what: Literal["deltas", "tensors"],
    names: Sequence[ParamName],
    compared: Callable[[ParamName], tuple[Match, Sums]],
    progress: Progress,
) -> Difference:
    progress.start(len(names), "comparing")
    rows: list[TensorDifference] = []
    sums: dict[str, list[Sums]] = {}
    for name, (match, found) in ordered_map(lambda name: (name, compared(name)), names):
        block = block_of(name)
        sums.setdefault(block, []).append(found)
        rows.append(
            TensorDifference(
                name=name,
                block=block,
                layer=layer_of(name),
                match=match,
                relative=found.relative,
                cosine=found.cosine,
                norm=math.sqrt(found.between),
                largest=found.largest,
            )
        )
        progress.advance()
    overall = total(one for members in sums.values() for one in members)
    same = Counter(row.block for row in rows if row.match == "same")
    return Difference(
        what=what,
        counts=dict(Counter(row.match for row in rows).most_common()),
        relative=overall.relative,
        cosine=overall.cosine,
        blocks=tuple(
            BlockDifference(
                block=block,
                tensors=len(members),
                same=same[block],
                relative=(joint := total(members)).relative,
                cosine=joint.cosine,
            )
            for block, members in sums.items()
        ),
        rows=tuple(rows),
    )


def _union(first: Iterable[ParamName], second: Iterable[ParamName]) -> list[ParamName]:
    return [ParamName(name) for name in names_in_order(dict.fromkeys([*first, *second]))]


def _unlike(one: object, other: object) -> Match:
    return "only second" if one is None else "only first" if other is None else "other shape"


def _same_delta(first: Adapter, second: Adapter, name: ParamName) -> bool:
    """Whether the stored values have the same bits."""
    one, other = first.module_at(name), second.module_at(name)
    if one is None or other is None:
        return one is other and _same_bits(first.dense[name], second.dense[name])
    return one.alpha == other.alpha and _same_bits(one.up, other.up) and _same_bits(one.down, other.down)


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    bits = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(*bits)


def _energy_of(adapter: Adapter, name: ParamName) -> float:
    if adapter.shape_of(name) is None:
        return 0.0
    module = adapter.module_at(name)
    return squared_norm(adapter.dense[name]) if module is None else inner(factors := module.factors(), factors)
