"""What a LoRA holds, measured from its factors alone: norms, spectra, bytes, and what it leaves out."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, LoraModule, module_bytes, rank_bytes
from lbm_lora.adapter.packed import index_of
from lbm_lora.adapter.packed_index import UNIT_BYTES, dense_bytes, is_coded
from lbm_lora.adapter.packed_index import rank_bytes as packed_rank_bytes
from lbm_lora.blocks import energy
from lbm_lora.errors import LbmLoraError
from lbm_lora.factorize import PACKED, Grid, Spectrum, allocate_error, energy_rank, product_svd
from lbm_lora.naming import ParamName
from lbm_lora.parallel import ordered_map
from lbm_lora.progress import SILENT, Progress
from lbm_lora.report.digest import names_in_order
from lbm_lora.report.inspection.adapter_values import AdapterFacts, DeltaFacts, Origin, Truncation
from lbm_lora.report.inspection.blocks import block_facts, norm_of
from lbm_lora.report.inspection.network import coverage_of, kind_of_param, layer_of
from lbm_lora.report.inspection.readers import readers_of
from lbm_lora.report.weights import block_of

TRUNCATED_TO = (0.01, 0.05, 0.1, 0.2)
"""Relative errors for which the size of a truncated LoRA is computed."""


@dataclass(frozen=True)
class _Measured:
    """A delta, and for a lora module its singular values in fp32."""

    facts: DeltaFacts
    module: LoraModule | None = None
    values: Tensor | None = None


def adapter_facts(adapter: Adapter, nbytes: int, known: Mapping[str, str], progress: Progress = SILENT) -> AdapterFacts:
    """Measure a LoRA, module by module.

    Args:
        nbytes: bytes of its file.
        known: fingerprint -> name of a checkpoint.
    """
    names: list[ParamName] = list(map(ParamName, names_in_order(adapter.params)))
    progress.start(len(names), "measuring the LoRA")
    measured: list[_Measured] = []
    more = _more_bytes(adapter)
    for one in ordered_map(lambda name: _measured(adapter, name, more), names):
        measured.append(one)
        progress.advance()
    deltas = tuple(one.facts for one in measured)
    modules = list(adapter.modules.values())
    total = norm_of(delta.norm for delta in deltas)
    return AdapterFacts(
        file_format=adapter.file_format,
        written_by=_written_by(adapter),
        base=_origin(adapter.metadata.base_fingerprint, known),
        tuned=_origin(adapter.metadata.tuned_fingerprint, known),
        ranks=dict(sorted(Counter(module.rank for module in modules).items())),
        scalings=dict(Counter(float(f"{module.scaling:.6g}") for module in modules).most_common()),
        kinds=dict(Counter(_counted(delta) for delta in deltas).most_common()),
        dtype=adapter.precision,
        factor_nbytes=sum(delta.nbytes for delta in deltas if delta.rank is not None),
        dense_nbytes=sum(delta.nbytes for delta in deltas if delta.rank is None),
        norm=total,
        broken=tuple(delta.name for delta in deltas if math.isnan(delta.norm)),
        truncations=_truncations(adapter, measured, nbytes, total),
        coverage=coverage_of(adapter.params),
        readers=readers_of(adapter),
        blocks=block_facts(deltas),
        deltas=deltas,
    )


def _more_bytes(adapter: Adapter) -> float:
    """Return how much more than expected a byte of counts takes in a packed file; 1 for others."""
    if adapter.dtype != PACKED:
        return 1.0
    index = index_of(adapter)
    plain = sum(UNIT_BYTES * len(widths) for _, widths in index.modules.values())
    plain += sum(UNIT_BYTES if is_coded(shape) else dense_bytes(shape, width) for shape, width in index.dense.values())
    return (adapter.nbytes - plain) / max(1, index.expected_bytes() - plain)


def _measured(adapter: Adapter, name: ParamName, more: float) -> _Measured:
    module = adapter.module_at(name)
    if module is None:
        return _Measured(_dense_facts(name, adapter.dense[name], adapter.grids.get(name), more))
    values = singular_values(module)
    spectrum = None if values is None else _spectrum(values, 1)
    return _Measured(
        DeltaFacts(
            name=name,
            block=block_of(name),
            layer=layer_of(name),
            kind=kind_of_param(name, module.shape),
            shape=module.shape,
            rank=module.rank,
            alpha=module.alpha,
            nbytes=_factor_nbytes(adapter, module, more),
            norm=math.nan if values is None else math.sqrt(energy(values)),
            rank_90=None if spectrum is None else energy_rank(spectrum, 0.9),
            rank_99=None if spectrum is None else energy_rank(spectrum, 0.99),
        ),
        module,
        values,
    )


def singular_values(module: LoraModule) -> Tensor | None:
    """Return the singular values of a lora module's delta, from its factors; None if a value is not finite."""
    factors = module.factors()
    if not (torch.isfinite(factors.up).all() and torch.isfinite(factors.down).all()):
        return None
    try:
        values = product_svd(factors).values
    except (LbmLoraError, RuntimeError):  # products beyond the range of fp32
        return None
    return values if torch.isfinite(values).all() else None


def _dense_facts(name: ParamName, delta: Tensor, grid: Grid | None, more: float) -> DeltaFacts:
    values = delta.float()
    return DeltaFacts(
        name=name,
        block=block_of(name),
        layer=layer_of(name),
        kind=kind_of_param(name, delta.shape),
        shape=tuple(delta.shape),
        rank=None,
        alpha=None,
        nbytes=dense_bytes(tuple(delta.shape), grid.widths[0], more) if grid else delta.nbytes,
        norm=math.sqrt(energy(values)) if torch.isfinite(values).all() else math.nan,
    )


def _factor_nbytes(adapter: Adapter, module: LoraModule, more: float) -> int:
    """Bytes of the factors in a file; in memory, whole numbers are fp32.

    Those of a packed file are coded together; each module gets its expected part.
    """
    if module.grid is not None:
        return sum(packed_rank_bytes(module.shape, width, more) for width in module.grid.widths)
    if adapter.dtype == torch.int8:
        return module.up.numel() + module.down.numel() + 4 * module.rank
    return module.up.nbytes + module.down.nbytes


def _counted(delta: DeltaFacts) -> str:
    """What a delta counts as: that a matrix is dense is said."""
    is_matrix = delta.kind.startswith(("linear", "conv"))
    return f"dense {delta.kind}" if is_matrix and delta.rank is None else delta.kind


def _truncations(adapter: Adapter, measured: Sequence[_Measured], nbytes: int, total: float) -> tuple[Truncation, ...]:
    """The sizes at a few errors; none where a value is not finite, there are no lora modules, or bits would change."""
    if adapter.dtype == PACKED:
        return ()
    dtype = adapter.dtype or next((module.up.dtype for module in adapter.modules.values()), torch.float32)
    spectra: list[Spectrum] = []
    for one in measured:
        if one.module is not None and one.values is not None:
            fixed = module_bytes(adapter.prefix, one.module.name, one.module.shape, 0, dtype)
            spectra.append(_spectrum(one.values, rank_bytes(one.module.shape, dtype), fixed))
    if not spectra or not total or not math.isfinite(total):
        return ()
    stored = sum(
        spectrum.fixed_bytes + spectrum.rank_bytes * one.module.rank
        for spectrum, one in zip(spectra, (one for one in measured if one.module is not None), strict=True)
        if one.module is not None
    )
    found: list[Truncation] = []
    for error in TRUNCATED_TO:
        chosen = allocate_error(spectra, (error * total) ** 2)
        ranks = sum(rank or 0 for rank in chosen.ranks)
        found.append(Truncation(relative_error=error, ranks=ranks, nbytes=nbytes - stored + chosen.size))
    return tuple(found)


def _spectrum(values: Tensor, nbytes: int, fixed: int = 0) -> Spectrum:
    return Spectrum(squares=values.double().square().numpy(), rest=0.0, rank_bytes=nbytes, fixed_bytes=fixed)


def _written_by(adapter: Adapter) -> str:
    metadata = adapter.metadata
    if metadata.format:
        return f"lbm-lora, format {metadata.format}"
    return "the earlier LBM LoRA System" if metadata.is_earlier_implementation else ""


def _origin(fingerprint: str, known: Mapping[str, str]) -> Origin:
    return Origin(fingerprint=fingerprint, known_as=known.get(fingerprint, "") if fingerprint else "")
