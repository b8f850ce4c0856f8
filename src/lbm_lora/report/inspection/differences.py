"""How two files differ, tensor by tensor: two LoRAs from their factors alone, two checkpoints in one pass."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lbm_lora.adapter import Adapter
from lbm_lora.checkpoint import Checkpoint, Component, Fingerprint, differing
from lbm_lora.naming import DENOISER_PREFIX, ParamName
from lbm_lora.parallel import ordered_map
from lbm_lora.progress import SILENT, Progress
from lbm_lora.report.digest import names_in_order
from lbm_lora.report.inspection.network import layer_of
from lbm_lora.report.inspection.relations import BlockDifference, Difference, Fit, Match, TensorDifference
from lbm_lora.report.inspection.sums import Sums, alone, energy, inner, of_factors, of_tensors, total
from lbm_lora.report.weights import block_of


def adapter_difference(first: Adapter, second: Adapter, progress: Progress = SILENT) -> Difference:
    """Compare the deltas of two LoRAs, each with its scaling."""
    names = _union(first.params, second.params)

    def compared(name: ParamName) -> tuple[Match, Sums]:
        shapes = first.shape_of(name), second.shape_of(name)
        if None in shapes or shapes[0] != shapes[1]:
            return _unlike(shapes), alone(_energy_of(first, name), _energy_of(second, name))
        if _same_delta(first, second, name):
            both = _energy_of(first, name)
            return "same", Sums(both, both, 0.0, both)
        one, other = first.module_at(name), second.module_at(name)
        if one is not None and other is not None:
            return "different", of_factors(one.factors(), other.factors())
        sums = of_tensors(_delta(first, name), _delta(second, name))
        return "different", replace(sums, largest=math.nan)

    return _difference("deltas", names, compared, progress)


def checkpoint_difference(first: Checkpoint, second: Checkpoint, progress: Progress = SILENT) -> Difference:
    """Compare the tensors of two checkpoints by their keys, in fp32; an LBM's denoiser by its parameters."""
    places = [{_param(key): key for key in checkpoint.specs} for checkpoint in (first, second)]
    is_lbm = any(key.startswith(DENOISER_PREFIX) for checkpoint in (first, second) for key in checkpoint.specs)
    denoiser, others = (
        [
            [name for name, key in place.items() if (is_lbm and key.startswith(DENOISER_PREFIX)) is part]
            for place in places
        ]
        for part in (True, False)
    )
    names = [*_union(*denoiser), *_union(*others)]

    def compared(name: ParamName) -> tuple[Match, Sums]:
        one, other = (
            None if name not in place else checkpoint.read(place[name])
            for place, checkpoint in zip(places, (first, second), strict=True)
        )
        if one is None or other is None or one.shape != other.shape:
            shapes = tuple(None if tensor is None else tuple(tensor.shape) for tensor in (one, other))
            return _unlike((shapes[0], shapes[1])), alone(energy(one), energy(other))
        sums = of_tensors(one, other)
        return "same" if _same_bits(one, other) else "different", sums

    return _difference("tensors", names, compared, progress)


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


def _param(key: str) -> ParamName:
    return ParamName(key.removeprefix(DENOISER_PREFIX))


def _unlike(shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]) -> Match:
    if None not in shapes:
        return "other shape"
    return "only second" if shapes[0] is None else "only first"


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
    return energy(adapter.dense[name]) if module is None else inner(factors := module.factors(), factors)


def _delta(adapter: Adapter, name: ParamName) -> Tensor:
    delta = adapter.delta(name)
    assert delta is not None
    return delta
