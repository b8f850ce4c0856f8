"""Read what a file of tensors is: facts that every kind has, then those of a LoRA or of a checkpoint.

A LoRA is measured from its factors alone: norms, spectra, bytes, and what it leaves out. A checkpoint is read in one
pass over its tensors.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, LoraModule, load_adapter, module_bytes, rank_bytes
from lbm_lora.adapter.formats import WISHES
from lbm_lora.adapter.formats.names import SGM, is_norm
from lbm_lora.adapter.formats.readers import READERS, Program
from lbm_lora.adapter.packed import index_of
from lbm_lora.adapter.packed_index import UNIT_BYTES, dense_bytes, is_coded
from lbm_lora.adapter.packed_index import rank_bytes as packed_rank_bytes
from lbm_lora.blocks import energy, flat_blocks, squares
from lbm_lora.checkpoint import (
    Checkpoint,
    Component,
    Fingerprint,
    FingerprintBuilder,
    TensorSpec,
    dtype_name,
    kind_of,
)
from lbm_lora.choices import AlphaIs, ForeignFormat
from lbm_lora.errors import AdapterError, LbmLoraError, plural
from lbm_lora.factorize import PACKED, Spectrum, allocate_error, energy_rank, product_svd
from lbm_lora.fidelity.weights import block_of, names_in_order
from lbm_lora.naming import DENOISER_PREFIX, ModuleName, ParamName, bias_of, leaf_of, module_of, weight_of
from lbm_lora.progress import SILENT, Progress
from lbm_lora.report.inspection.values import (
    AdapterFacts,
    BlockFacts,
    CheckpointFacts,
    ComponentFacts,
    Coverage,
    DeltaFacts,
    FileFacts,
    Origin,
    Reader,
    TensorFacts,
    Truncation,
)
from lbm_lora.runtime import ordered_map

KNOWN: Mapping[str, str] = {
    "d633083096e77cf8074fff4a311b3d5b": "the exact base of the bundled mini model",
    "d761118c2dae87aa85f5476be45c4058": "the bundled mini model",
}
"""Fingerprint of a denoiser -> name: the bundled model and its base, in the bf16 in which `lbm-lora base` writes it."""

ITERATIONS = "num_iterations"
"""LBM's own counter of training iterations, a key of its checkpoints."""

_TENSOR_DIGESTS = "lbm_lora_base_tensors"  # of thousands of tensors
_TRUNCATED_TO = (0.01, 0.05, 0.1, 0.2)  # relative errors for which the size of a truncated LoRA is computed


def read_as_lora(
    checkpoint: Checkpoint, alpha_is: AlphaIs, base: Component | None = None
) -> Adapter | AdapterError | None:
    """Return the LoRA in a file, or why it cannot be read; None for a file that is not meant as one.

    Args:
        base: the component that it is meant for; see `load_adapter`.
    """
    kind = kind_of(checkpoint.specs, checkpoint.metadata)
    if kind is not None and kind.role not in ("lora", "foreign"):
        return None
    try:
        return load_adapter(checkpoint.state_dict() if checkpoint.in_memory else checkpoint.path, alpha_is, base=base)
    except AdapterError as error:
        return None if kind is None else error


def file_facts(checkpoint: Checkpoint, found: Adapter | AdapterError | None) -> FileFacts:
    """Return the facts that any file has."""
    files = () if checkpoint.in_memory else checkpoint.files
    tensor_nbytes = sum(spec.nbytes for spec in checkpoint.specs.values())
    nbytes = sum(path.stat().st_size for path in files) if files else tensor_nbytes
    kind = kind_of(checkpoint.specs, checkpoint.metadata)
    unknown = "a file of tensors of no known kind" if checkpoint.specs else "a file without tensors"
    return FileFacts(
        path=checkpoint.path,
        kind="a LoRA" if isinstance(found, Adapter) else kind.name if kind is not None else unknown,
        files=tuple(path.name for path in files),
        nbytes=nbytes,
        header_nbytes=nbytes - tensor_nbytes,
        tensors=len(checkpoint.specs),
        dtypes=_dtypes(checkpoint.specs.values()),
        first_keys=tuple(list(checkpoint.specs)[:3]),
        header={key: value for key, value in sorted(checkpoint.metadata.items()) if key != _TENSOR_DIGESTS},
        refusal=found if isinstance(found, AdapterError) else None,
    )


def _dtypes(specs: Iterable[TensorSpec]) -> dict[str, int]:
    return dict(Counter(dtype_name(spec.dtype) for spec in specs).most_common())


def norm_of(norms: Iterable[float]) -> float:
    """Return the joint norm of parts; nan if one of them is."""
    return math.sqrt(math.fsum(norm**2 for norm in norms))


def block_facts(rows: Sequence[DeltaFacts] | Sequence[TensorFacts]) -> tuple[BlockFacts, ...]:
    """Sum up deltas or tensors by block, in their order."""
    grouped: dict[str, list[DeltaFacts | TensorFacts]] = {}
    for row in rows:
        grouped.setdefault(row.block, []).append(row)
    total = norm_of(row.norm for row in rows)
    blocks: list[BlockFacts] = []
    for name, members in grouped.items():
        norm = norm_of(row.norm for row in members)
        deltas = [row for row in members if isinstance(row, DeltaFacts)]
        blocks.append(
            BlockFacts(
                block=name,
                tensors=len(members),
                nbytes=sum(row.nbytes for row in members),
                norm=norm,
                share=(norm / total) ** 2 if total else 0.0,
                ranks=sum(delta.rank or 0 for delta in deltas),
                ranks_90=sum(delta.rank_90 or 0 for delta in deltas),
                ranks_99=sum(delta.rank_99 or 0 for delta in deltas),
            )
        )
    return tuple(blocks)


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
    for one in ordered_map(lambda name: _tensor(component, name, digests), names):
        tensors.append(one)
        progress.advance()
    fingerprint = digests.build()
    known_as = known.get(fingerprint.digest, "")
    iterations = _iterations(checkpoint)
    role = "exact base" if is_exact_base else "tuned" if iterations and not known_as else ""
    reasons = {"exact base": "marked so by the program that made it", "": ""}
    facts = CheckpointFacts(
        components=_components(checkpoint),
        fingerprint=fingerprint.digest,
        known_as=known_as,
        role=role,
        role_reason=reasons.get(role, f"counts {iterations or 0:,} training iterations"),
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


def squared_norm(tensor: Tensor) -> float:
    """Return the squared norm of a tensor of any dtype, block by block; see `wide`."""
    return math.fsum(squares(wide(block)) for (block,) in flat_blocks(tensor.contiguous()))


def wide(values: Tensor) -> Tensor:
    """Return values in fp32, or in fp64 if they are stored so."""
    return values if values.dtype == torch.float64 else values.float()


def _tensor(component: Component, name: ParamName, digests: FingerprintBuilder) -> TensorFacts:
    """Add a tensor to the fingerprint, and return its facts."""
    spec, tensor = component.specs[name], component.read(name)
    digests.add(name, tensor)
    total = squared_norm(tensor)
    return TensorFacts(
        name=name,
        block=block_of(name),
        layer=layer_of(name),
        dtype=dtype_name(spec.dtype),
        shape=spec.shape,
        nbytes=spec.nbytes,
        norm=math.sqrt(total) if math.isfinite(total) else math.nan,
    )


def _components(checkpoint: Checkpoint) -> tuple[ComponentFacts, ...]:
    """The tensors by the first part of their keys."""
    grouped: dict[str, list[TensorSpec]] = {}
    for key, spec in checkpoint.specs.items():
        grouped.setdefault(key.partition(".")[0], []).append(spec)
    return tuple(
        ComponentFacts(name=name, tensors=len(specs), nbytes=sum(one.nbytes for one in specs), dtypes=_dtypes(specs))
        for name, specs in grouped.items()
    )


def _iterations(checkpoint: Checkpoint) -> int | None:
    spec = checkpoint.specs.get(ITERATIONS)
    most = float(checkpoint.read(ITERATIONS).to(torch.float64).max()) if spec and spec.numel else math.nan
    return int(most) if math.isfinite(most) else None


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
    names = [ParamName(name) for name in names_in_order(adapter.params)]
    progress.start(len(names), "measuring the LoRA")
    measured: list[_Measured] = []
    more = _more_bytes(adapter)
    for one in ordered_map(lambda name: _measured(adapter, name, more), names):
        measured.append(one)
        progress.advance()
    deltas = tuple(one.facts for one in measured)
    modules = list(adapter.modules.values())
    total = norm_of(delta.norm for delta in deltas)
    metadata = adapter.metadata
    earlier = "the earlier LBM LoRA System" if metadata.is_earlier_implementation else ""
    base, tuned = (
        Origin(fingerprint=digest, known_as=known.get(digest, "") if digest else "")
        for digest in (metadata.base_fingerprint, metadata.tuned_fingerprint)
    )
    return AdapterFacts(
        file_format=adapter.file_format,
        written_by=f"lbm-lora, format {metadata.format}" if metadata.format else earlier,
        base=base,
        tuned=tuned,
        ranks=dict(sorted(Counter(module.rank for module in modules).items())),
        scalings=dict(Counter(float(f"{module.scaling:.6g}") for module in modules).most_common()),
        kinds=dict(Counter(map(_counted, deltas)).most_common()),
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
    values = None if module is None else singular_values(module)
    if module is None:
        delta, grid = adapter.dense[name], adapter.grids.get(name)
        shape, total = tuple(delta.shape), energy(delta.float())
        nbytes = dense_bytes(shape, grid.widths[0], more) if grid else delta.nbytes
    else:
        shape, nbytes = module.shape, _factor_nbytes(adapter, module, more)
        total = math.nan if values is None else energy(values)
    spectrum = None if values is None else _spectrum(values, 1)
    facts = DeltaFacts(
        name=name,
        block=block_of(name),
        layer=layer_of(name),
        kind=kind_of_param(name, shape),
        shape=shape,
        rank=None if module is None else module.rank,
        alpha=None if module is None else module.alpha,
        nbytes=nbytes,
        norm=math.sqrt(total) if math.isfinite(total) else math.nan,
        rank_90=None if spectrum is None else energy_rank(spectrum, 0.9),
        rank_99=None if spectrum is None else energy_rank(spectrum, 0.99),
    )
    return _Measured(facts, module, values)


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
    """Return the kind for counting; a dense matrix has `dense` in front."""
    is_matrix = delta.kind.startswith(("linear", "conv"))
    return f"dense {delta.kind}" if is_matrix and delta.rank is None else delta.kind


def _truncations(adapter: Adapter, measured: Sequence[_Measured], nbytes: int, total: float) -> tuple[Truncation, ...]:
    """The sizes at a few errors; none where a value is not finite, there are no lora modules, or bits would change."""
    if adapter.dtype == PACKED:
        return ()
    dtype = adapter.dtype or next((module.up.dtype for module in adapter.modules.values()), torch.float32)
    spectra: list[Spectrum] = []
    stored = 0
    for one in measured:
        if one.module is not None and one.values is not None:
            shape = one.module.shape
            fixed = module_bytes(adapter.prefix, one.module.name, shape, 0, dtype)
            spectra.append(_spectrum(one.values, rank_bytes(shape, dtype), fixed))
            stored += fixed + spectra[-1].rank_bytes * one.module.rank
    if not spectra or not total or not math.isfinite(total):
        return ()
    chosen = {error: allocate_error(spectra, (error * total) ** 2) for error in _TRUNCATED_TO}
    return tuple(
        Truncation(
            relative_error=error, ranks=sum(map(int, filter(None, one.ranks))), nbytes=nbytes - stored + one.size
        )
        for error, one in chosen.items()
    )


def _spectrum(values: Tensor, nbytes: int, fixed: int = 0) -> Spectrum:
    return Spectrum(squares=values.double().square().numpy(), rest=0.0, rank_bytes=nbytes, fixed_bytes=fixed)


_DEPTHS = {"down_blocks.1": 2, "down_blocks.2": 10, "mid_block": 10, "up_blocks.0": 10, "up_blocks.1": 2}
"""Layers of the transformers of each block with attention (SDXL's configuration, which LBM shares)."""
_SHORTCUTS = ("up_blocks.", "down_blocks.1.resnets.0.", "down_blocks.2.resnets.0.")
"""Where a resnet's widths differ: in up blocks, and in the first of each wider down block."""


def _is_of_lbm(name: ModuleName) -> bool:
    """Whether a module of SDXL's table is there in LBM: it is not a deeper layer or a shortcut of equal widths."""
    found = re.search(r"^(\w+?_block(?:s\.\d+)?)\..*transformer_blocks\.(\d+)\.", name)
    is_deep = found is not None and int(found[2]) >= _DEPTHS.get(found[1], 0)
    return not is_deep and (not name.endswith(".conv_shortcut") or name.startswith(_SHORTCUTS))


LBM_PARAMS: tuple[ParamName, ...] = tuple(
    param
    for name in filter(_is_of_lbm, SGM)
    for param in ([weight_of(name)] if name.endswith((".to_q", ".to_k", ".to_v")) else [weight_of(name), bias_of(name)])
)
"""The 1676 parameters of LBM's denoiser; names only, since widths differ between models."""


def kind_of_param(name: ParamName, shape: Sequence[int]) -> str:
    """Return `linear`, `conv 3x3`, `norm`, `bias`, `matrix` or `other` for a parameter of a network."""
    if "norm" in module_of(name).rpartition(".")[2]:
        return "norm"
    if leaf_of(name) == "bias" and len(shape) == 1:
        return "bias"
    if leaf_of(name) != "weight" or len(shape) not in (2, 4):
        return "matrix" if len(shape) > 1 else "other"
    return "linear" if len(shape) == 2 else f"conv {shape[2]}x{shape[3]}"


def layer_of(name: ParamName) -> str:
    """Return what a parameter's layer does, alike in every block: `attn1.to_q`, `ff.net`, `conv1`, `norm`."""
    parts = [part for part in module_of(name).split(".") if not part.isdigit()]
    for place in ("attn1", "attn2", "ff"):
        if place in parts[:-1]:
            return ".".join(parts[parts.index(place) :])
    if "norm" in parts[-1]:
        return "norm"
    return re.sub(r"^(conv|linear)_(in|out|\d+)$", r"\1", parts[-1]) or "other"


def coverage_of(names: Collection[ParamName]) -> Coverage | None:
    """Return which of an LBM's parameters are not among `names`; None if most of those are not an LBM's."""
    known = frozenset(LBM_PARAMS)
    unexpected = tuple(name for name in names if name not in known)
    if len(unexpected) > 0.5 * len(names) or not names:
        return None
    missing = tuple(name for name in LBM_PARAMS if name not in names)
    return Coverage(
        tensors=len(LBM_PARAMS),
        missing=missing,
        missing_kinds=dict(Counter(map(_kind_by_name, missing)).most_common()),
        unexpected=unexpected,
    )


def _kind_by_name(name: ParamName) -> str:
    """The kind of an LBM's parameter, whose shape is not known: `linear`, `conv`, `norm` or `bias`."""
    layer = module_of(name).rpartition(".")[2]
    if "norm" in layer or leaf_of(name) == "bias":
        return "norm" if "norm" in layer else "bias"
    return "conv" if layer.startswith("conv") else "linear"


_OTHERS: dict[Program, tuple[ForeignFormat, str]] = {
    "ComfyUI": ("comfyui", "it ignores the keys: the base's image, with warnings in the log"),
    "diffusers": ("diffusers", "load_lora_adapter finds no keys of its own"),
    "PEFT": ("peft", "it needs adapter_config.json and keys under base_model.model."),
    "LyCORIS": ("lycoris", "no layer matches"),
}
"""Other program -> its own format, and what it does with a file of one that it does not read.

Who reads which format is said once, in `adapter.formats.readers`; here is what becomes of a certain file.
"""


def readers_of(adapter: Adapter) -> tuple[Reader, ...]:
    """Return what each program makes of an adapter's file, in the format that it was read from."""
    return (Reader(name="lbm-lora", reads="all", note=""), *(_reader(adapter, program) for program in _OTHERS))


def _reader(adapter: Adapter, program: Program) -> Reader:
    codes = {PACKED: "it does not know packed factors", torch.int8: "it does not know factors in 8 bits"}
    if adapter.dtype in codes:
        return _not_read(adapter, program, codes[adapter.dtype])
    found = next((reader for reader in READERS[adapter.file_format] if reader.program == program), None)
    if found is None:
        return _not_read(adapter, program, _OTHERS[program][1])
    if program != "diffusers":
        return Reader(name=program, reads="all", note=found.note)
    if adapter.file_format != "diffusers":
        if adapter.dense:
            dense = plural(len(adapter.dense), "dense delta")
            return _not_read(adapter, program, f"its SDXL converter stops at {dense}")
        return Reader(name=program, reads="all", note=found.note)
    strange = _not_of_layers(adapter)
    if strange:
        note = f"it ignores {plural(len(strange), 'dense delta')} of norms or of layers without factors"
        return Reader(name=program, reads="part", note=note)
    ranks = {module.rank for module in adapter.modules.values()}
    # reading takes padding away, so the ranks in the file may be equal
    return Reader(name=program, reads="all", note="before 0.40 only if padded to one rank" if len(ranks) > 1 else "")


def _not_of_layers(adapter: Adapter) -> list[ParamName]:
    """Return the dense deltas that are neither a matrix, which the file has as factors, nor the bias of `lora_B`."""
    matrices = {module_of(name) for name in adapter.dense if leaf_of(name) == "weight" and not is_norm(name)}
    layers = matrices | set(adapter.modules)
    return [name for name in adapter.dense if is_norm(name) or module_of(name) not in layers]


def _not_read(adapter: Adapter, program: Program, note: str) -> Reader:
    """A file that has to be converted, with wishes for biases and norms that the format could not hold."""
    own = _OTHERS[program][0]
    has_norms = any(map(is_norm, adapter.dense))
    has_biases = any(leaf_of(name) == "bias" and not is_norm(name) for name in adapter.dense)
    asked = [("biases", WISHES[own].biases, has_biases), ("norms", WISHES[own].norms, has_norms)]
    wishes = [f"--{name} {value}" for name, value, is_there in asked if is_there and value != "keep"]
    return Reader(name=program, reads="nothing", note=note, convert_to=own, options=" ".join([f"--to {own}", *wishes]))
