"""What a checkpoint holds, in one pass over its tensors."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lbm_lora.blocks import flat_blocks, squares
from lbm_lora.checkpoint import Checkpoint, Component, Fingerprint, FingerprintBuilder, TensorSpec, dtype_name
from lbm_lora.naming import DENOISER_PREFIX, ParamName
from lbm_lora.parallel import ordered_map
from lbm_lora.progress import SILENT, Progress
from lbm_lora.report.digest import names_in_order
from lbm_lora.report.inspection.blocks import block_facts
from lbm_lora.report.inspection.network import coverage_of, layer_of
from lbm_lora.report.inspection.values import CheckpointFacts, ComponentFacts, TensorFacts
from lbm_lora.report.weights import block_of

ITERATIONS = "num_iterations"
"""LBM's own counter of training iterations, a key of its checkpoints."""


def checkpoint_facts(
    checkpoint: Checkpoint, known: Mapping[str, str], *, is_exact_base: bool, config: str, progress: Progress = SILENT
) -> tuple[CheckpointFacts, Fingerprint]:
    """Read a checkpoint once: fingerprint and norms of the denoiser, or of all tensors if there is none.

    Args:
        known: fingerprint -> name of a checkpoint.
        is_exact_base: whether the file is marked as one.
        config: where the configuration of its networks comes from.
    """
    component = denoiser_of(checkpoint)
    names = [ParamName(name) for name in names_in_order(component.specs)]
    digests = FingerprintBuilder()
    progress.start(len(names), "reading the checkpoint")
    tensors: list[TensorFacts] = []
    for name, norm in ordered_map(lambda name: (name, _read(component, name, digests)), names):
        tensors.append(_tensor(name, component.specs[name], norm))
        progress.advance()
    fingerprint = digests.build()
    iterations = _iterations(checkpoint)
    role, reason = _role(known.get(fingerprint.digest, ""), iterations, is_exact_base=is_exact_base)
    facts = CheckpointFacts(
        components=_components(checkpoint),
        fingerprint=fingerprint.digest,
        known_as=known.get(fingerprint.digest, ""),
        role=role,
        role_reason=reason,
        iterations=iterations,
        config=config,
        coverage=coverage_of(component.specs.keys()),
        broken=tuple(tensor.name for tensor in tensors if math.isnan(tensor.norm)),
        blocks=block_facts(tensors),
        tensors=tuple(tensors),
    )
    return facts, fingerprint


def denoiser_of(checkpoint: Checkpoint) -> Component:
    """The denoiser of an LBM, or every tensor of another file."""
    is_lbm = any(key.startswith(DENOISER_PREFIX) for key in checkpoint.specs)
    return checkpoint.component(DENOISER_PREFIX if is_lbm else "")


def dtypes_of(specs: Iterable[TensorSpec]) -> dict[str, int]:
    """Return dtype -> tensors, the most frequent first."""
    return dict(Counter(dtype_name(spec.dtype) for spec in specs).most_common())


def wide(values: Tensor) -> Tensor:
    """Return values in fp32, or in fp64 if they are stored so."""
    return values if values.dtype == torch.float64 else values.float()


def _read(component: Component, name: ParamName, digests: FingerprintBuilder) -> float:
    """Add a tensor to the fingerprint, and return its norm; nan if a value is not finite."""
    tensor = component.read(name)
    digests.add(name, tensor)
    total = math.fsum(squares(wide(block)) for (block,) in flat_blocks(tensor.contiguous()))
    return math.sqrt(total) if math.isfinite(total) else math.nan


def _tensor(name: ParamName, spec: TensorSpec, norm: float) -> TensorFacts:
    return TensorFacts(
        name=name,
        block=block_of(name),
        layer=layer_of(name),
        dtype=dtype_name(spec.dtype),
        shape=spec.shape,
        nbytes=spec.nbytes,
        norm=norm,
    )


def _components(checkpoint: Checkpoint) -> tuple[ComponentFacts, ...]:
    """The tensors by the first part of their keys."""
    grouped: dict[str, list[TensorSpec]] = {}
    for key, spec in checkpoint.specs.items():
        grouped.setdefault(key.partition(".")[0], []).append(spec)
    return tuple(
        ComponentFacts(name=name, tensors=len(specs), nbytes=_nbytes(specs), dtypes=dtypes_of(specs))
        for name, specs in grouped.items()
    )


def _nbytes(specs: Sequence[TensorSpec]) -> int:
    return sum(spec.nbytes for spec in specs)


def _iterations(checkpoint: Checkpoint) -> int | None:
    spec = checkpoint.specs.get(ITERATIONS)
    if spec is None or not spec.numel:
        return None
    most = float(checkpoint.read(ITERATIONS).to(torch.float64).max())
    return int(most) if math.isfinite(most) else None


def _role(known_as: str, iterations: int | None, *, is_exact_base: bool) -> tuple[str, str]:
    """What the file's own records say it is, and which of them."""
    if is_exact_base:
        return "exact base", "marked so by the program that made it"
    if known_as:
        return "", ""
    if iterations:
        return "tuned", f"counts {iterations:,} training iterations"
    return "", ""
