"""Check that an adapter fits a model: its names, its shapes, and the base that it was made from."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from lbm_lora.adapter import Adapter
from lbm_lora.checkpoint import Component, Fingerprint, FingerprintBuilder, differing, dtype_name, fingerprint
from lbm_lora.errors import AdapterError, Option, WrongBaseError, listing
from lbm_lora.naming import ParamName
from lbm_lora.progress import warn


@dataclass(frozen=True)
class Fit:
    """Param names of an adapter that exist in the model, and those that do not."""

    matched: tuple[ParamName, ...]
    unmatched: tuple[ParamName, ...]


def check_fit(adapter: Adapter, shapes: Mapping[ParamName, tuple[int, ...]], *, allow_unmatched: bool = False) -> Fit:
    """Compare an adapter's names and shapes with a model's parameters."""
    matched = tuple(name for name in adapter.params if name in shapes)
    unmatched = tuple(name for name in adapter.params if name not in shapes)
    if not matched:
        raise AdapterError(
            f"{adapter.label}: none of its {len(unmatched)} parameters are in the model: {listing(unmatched, limit=3)}."
        )
    if unmatched and not allow_unmatched:
        raise AdapterError(
            f"{adapter.label}: {len(unmatched)} of {len(adapter.params)} parameters are not in the model: "
            f"{listing(unmatched)}. To apply the rest: ",
            Option("allow_unmatched"),
            ".",
        )
    for name in matched:
        if adapter.shape_of(name) != tuple(shapes[name]):
            raise AdapterError(
                f"{name}: {adapter.label} needs shape {adapter.shape_of(name)}, the model has "
                f"{tuple(shapes[name])}. Is it an adapter for this network?"
            )
    return Fit(matched, unmatched)


def check_base(
    adapter: Adapter, base: Component, *, allow_other_base: bool | None = False, found: Fingerprint | None = None
) -> None:
    """Compare the fingerprint in an adapter with the base that it is applied to.

    Args:
        allow_other_base: warn instead of failing; None if the caller offers no such option.
        found: the base's fingerprint, if already known; by default the base is read to compute it.

    An adapter without a fingerprint cannot be checked and gives a warning; so does another base that is allowed.
    """
    if not adapter.metadata.base_fingerprint:
        warn(f"{adapter.label} does not say which base it was made from, so the base cannot be checked.")
        return
    found = found or fingerprint(base)
    if found.digest == adapter.metadata.base_fingerprint:
        return
    difference = _difference(adapter, base, found)
    if allow_other_base is None:
        raise WrongBaseError(f"{difference} Give the base it was made from.")
    if not allow_other_base:
        raise WrongBaseError(f"{difference} Give the base it was made from, or use ", Option("allow_other_base"), ".")
    warn(difference)


def _difference(adapter: Adapter, base: Component, found: Fingerprint) -> str:
    """In what a component is not the base of an adapter."""
    if found.digest == adapter.metadata.tuned_fingerprint:
        return (
            f"{base.path} is not the base of {adapter.label}, but the tuned checkpoint that it was extracted from. "
            "Are base and tuned swapped?"
        )
    names = differing(adapter.metadata.base_tensors, found)
    return (
        f"{adapter.label} was made from another base than {base.path}: {len(names)} of {len(base)} tensors differ: "
        f"{listing(names, limit=3)}.{_other_precision(adapter, base, found) if len(names) == len(base) else ''}"
    )


def _other_precision(adapter: Adapter, base: Component, found: Fingerprint) -> str:
    """Say it if a cast alone makes the difference, as the smallest matrix shows: vectors may be equal by chance."""
    for name in sorted(base.specs, key=lambda one: base.specs[one].numel):
        if len(base.specs[name].shape) > 1:
            tensor = base.read(name)
            for dtype in (torch.bfloat16, torch.float16, torch.float32):
                digests = FingerprintBuilder()
                digests.add(name, tensor.to(dtype))
                cast = replace(found, tensors={**found.tensors, **digests.build().tensors})
                if name not in differing(adapter.metadata.base_tensors, cast):
                    made, here = dtype_name(dtype), dtype_name(tensor.dtype)
                    return f" It was made from the same base in {made}; this one is {here}."
            break
    return ""
