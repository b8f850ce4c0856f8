"""The LoRA as an immutable value: lora modules, dense deltas and metadata."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from lbm_lora.adapter.metadata import AdapterMetadata
from lbm_lora.checkpoint import Component, TensorSpec, bytes_of, dtype_name
from lbm_lora.choices import AlphaIs, BiasesAs, FormatName, NormsAs
from lbm_lora.errors import AdapterError, InputError, Option, home_path, plural
from lbm_lora.factorize import PACKED, Factors, Grid, dense_dtype, rounded, stored_factors
from lbm_lora.naming import ModuleName, ParamName, leaf_of, module_of, weight_of
from lbm_lora.progress import warn


@dataclass(frozen=True)
class LoraModule:
    """Low-rank delta of one weight: scaling * up @ down.

    Attributes:
        down: (rank, in) or (rank, in, kh, kw).
        up: (out, rank) or (out, rank, 1, 1).
        alpha: scaling = alpha / rank.
        grid: bits and unit of each rank, if the factors are those of a packed file.
    """

    name: ModuleName
    down: Tensor
    up: Tensor
    alpha: float
    grid: Grid | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that this module changes."""
        return (self.up.shape[0], *self.down.shape[1:])

    def cast(self, dtype: torch.dtype) -> "LoraModule":
        """Return the module as stored in a file of `dtype`, with the same alpha."""
        stored = stored_factors(self.up.float().flatten(1), self.down.float().flatten(1), dtype)
        return LoraModule(self.name, stored.down.reshape(self.down.shape), stored.up.reshape(self.up.shape), self.alpha)

    def factors(self) -> Factors:
        """Return both factors as fp32 matrices, with the scaling in `up`."""
        return Factors(self.scaling * self.up.float().flatten(1), self.down.float().flatten(1))

    def delta(self) -> Tensor:
        """Return scaling * up @ down in fp32, in the weight's shape."""
        return self.factors().product().reshape(self.shape)


StoredDelta = tuple[ParamName, LoraModule | Tensor | None]
"""A parameter, and what a LoRA stores for it: a lora module, a dense delta, or nothing."""


@dataclass(frozen=True, eq=False, repr=False)
class Adapter:
    """Set of lora modules by module name and dense deltas by param name.

    Tensors keep the dtype of the file and may be views of it, except for factors in 8 bits. `len(adapter)` counts the
    parameters that it changes.

    Attributes:
        prefix: prefix of the component in its checkpoint (`denoiser.` for an LBM, empty if there is none).
        path: the file that it was read from, for messages; None for one that was made in memory.
        dtype: dtype when saved: int8 if the factors are exact in 8 bits and should be stored so (in memory they are
            fp32, and dense deltas fp16), `PACKED` if all have grids; None is the dtype of the tensors.
    """

    modules: Mapping[ModuleName, LoraModule]
    dense: Mapping[ParamName, Tensor]
    metadata: AdapterMetadata = field(default_factory=AdapterMetadata)
    prefix: str = ""
    path: Path | None = None
    dtype: torch.dtype | None = None
    file_format: FormatName = "native"
    grids: Mapping[ParamName, Grid] = field(default_factory=dict[ParamName, Grid])

    def __post_init__(self) -> None:
        both = [name for name in self.dense if self.module_at(name) is not None]
        if both:
            raise AdapterError(f"{self.label}: {both[0]} has both factors and a dense delta. Remove one of them.")

    @classmethod
    def load(cls, path: Path | str, alpha_is: AlphaIs = "auto") -> "Adapter":
        """Read an adapter file; see `load_adapter`."""
        from lbm_lora.adapter.adapter_file import load_adapter  # it is made of this class

        return load_adapter(home_path(path), alpha_is)

    def save(
        self,
        path: Path | str,
        format: FormatName = "native",
        *,
        biases: BiasesAs = "keep",
        norms: NormsAs = "keep",
        base: Component | None = None,
    ) -> Path:
        """Write the adapter as a file, atomically; a file that is there is replaced.

        Args:
            path: a `.safetensors` file; for `peft` a folder.
            format: the format of the file, for the program that will read it.
            biases, norms: what becomes of these deltas if the format cannot hold them.
            base: the component that the adapter is for; `replace` needs its values.
        """
        from lbm_lora.adapter.adapter_file import save_adapter  # it takes this class
        from lbm_lora.adapter.formats import Wishes

        saved = save_adapter(self, home_path(path), format=format, wishes=Wishes(biases, norms, base))
        for note in saved.notes:
            warn(f"{saved.path}: {note}")
        return saved.path

    def __len__(self) -> int:
        return len(self.modules) + len(self.dense)

    def __repr__(self) -> str:
        """`<Adapter relight.safetensors: 722 lora modules of rank 4 to 32, 956 dense deltas, bf16, 193.4 MB>`."""
        ranks = sorted({module.rank for module in self.modules.values()})
        span = f" of rank {ranks[0]}" if len(ranks) == 1 else f" of rank {ranks[0]} to {ranks[-1]}" if ranks else ""
        counts = f"{plural(len(self.modules), 'lora module')}{span}, {plural(len(self.dense), 'dense delta')}"
        name = f" {self.path}" if self.path else ""
        return f"<{type(self).__name__}{name}: {counts}, {self.precision}, {self.nbytes / 1e6:.1f} MB>"

    @property
    def label(self) -> str:
        """What messages call it: its path, where it has one."""
        return str(self.path or "the LoRA")

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors in a file of it, without the header."""
        if self.dtype == PACKED:
            from lbm_lora.adapter.packed import DATA, encode_packed  # it is of this class

            return encode_packed(self)[DATA].nbytes
        stored = sum(delta.nbytes for delta in self.dense.values())
        for module in self.modules.values():
            if self.dtype == torch.int8:  # a byte for each value, and an fp32 unit for each rank
                stored += module.up.numel() + module.down.numel() + 4 * module.rank
            else:  # and an fp32 alpha
                stored += module.up.nbytes + module.down.nbytes + 4
        return stored

    @property
    def params(self) -> list[ParamName]:
        """The param names that the adapter changes."""
        return [*(weight_of(name) for name in self.modules), *self.dense]

    def shape_of(self, name: ParamName) -> tuple[int, ...] | None:
        """Return the shape that a parameter must have for this adapter; None if the adapter does not change it."""
        if name in self.dense:
            return tuple(self.dense[name].shape)
        module = self.module_at(name)
        return None if module is None else module.shape

    def delta(self, name: ParamName) -> Tensor | None:
        """Return the delta of one parameter in fp32 and in its shape; None if the adapter does not change it."""
        if name in self.dense:
            return self.dense[name].float()
        module = self.module_at(name)
        return None if module is None else module.delta()

    def stored(self) -> Iterator[StoredDelta]:
        """Yield what it stores for each parameter that it changes."""
        yield from ((weight_of(name), module) for name, module in self.modules.items())
        yield from self.dense.items()

    def digest(self) -> str:
        """Return the digest of its tensors and alphas, which need not be those of its file."""
        digest = xxhash.xxh3_128()

        def add(tensor: Tensor) -> None:
            digest.update(f"{TensorSpec.of(tensor)}\n".encode())
            digest.update(bytes_of(tensor))

        for name, module in sorted(self.modules.items()):
            digest.update(f"{name} {module.alpha}\n".encode())
            add(module.down)
            add(module.up)
        for name, delta in sorted(self.dense.items()):
            digest.update(f"{name}\n".encode())
            add(delta)
        return digest.hexdigest()

    def module_at(self, name: ParamName) -> LoraModule | None:
        """Return the lora module of a weight; None if it has none."""
        return self.modules.get(module_of(name)) if leaf_of(name) == "weight" else None

    def cast(self, dtype: torch.dtype) -> "Adapter":
        """Return the adapter as stored in a file of `dtype`: fp32, fp16, bf16, or int8."""
        if dtype == PACKED:
            raise InputError(
                Option("save_precision", "auto"), " needs the tuned model: `lbm-lora extract` chooses the bits."
            )
        modules = {name: module.cast(dtype) for name, module in self.modules.items()}
        dense = {name: rounded(delta, dense_dtype(dtype)) for name, delta in self.dense.items()}
        return self.holding(modules, dense, torch.int8 if dtype == torch.int8 else None)

    def unpacked(self) -> "Adapter":
        """Return the adapter without grids, in fp32; itself if it has none."""
        if self.dtype != PACKED:
            return self
        modules = {name: replace(module, grid=None) for name, module in self.modules.items()}
        return replace(self.holding(modules, self.dense, None), grids={})

    def filtered(self, keep: Callable[[ParamName], bool]) -> "Adapter":
        """Return the part of the adapter whose param names `keep` accepts."""
        modules = {name: module for name, module in self.modules.items() if keep(weight_of(name))}
        dense = {name: delta for name, delta in self.dense.items() if keep(name)}
        grids = {name: grid for name, grid in self.grids.items() if name in dense}
        part = replace(self.holding(modules, dense, self.dtype), grids=grids)
        if part.params == self.params:
            return part
        return replace(part, metadata=self.metadata.without_errors())

    def holding(
        self, modules: Mapping[ModuleName, LoraModule], dense: Mapping[ParamName, Tensor], dtype: torch.dtype | None
    ) -> "Adapter":
        """Return an adapter with other contents. It is a plain one: a subclass's measurements no longer apply."""
        return Adapter(modules, dense, self.metadata, self.prefix, self.path, dtype, self.file_format)

    @property
    def factor_dtypes(self) -> set[torch.dtype]:
        return {tensor.dtype for module in self.modules.values() for tensor in (module.up, module.down)}

    @property
    def tensor_dtypes(self) -> set[torch.dtype]:
        return self.factor_dtypes | {delta.dtype for delta in self.dense.values()}

    @property
    def precision(self) -> str:
        """Precision of its file: the dtypes, or `packed`."""
        if self.dtype == PACKED:
            return "packed"
        dtypes = {self.dtype} if self.dtype else self.tensor_dtypes
        return " and ".join(sorted(dtype_name(dtype) for dtype in dtypes)) or "empty"


def common_dtype(adapters: Sequence[Adapter]) -> torch.dtype:
    """Return the one dtype of the factors of all adapters in their files; fp32 where there are several.

    An adapter without factors counts with its dense deltas, and a packed one as fp16: other factors have no bits yet.
    """
    dtypes: set[torch.dtype] = set()
    for adapter in adapters:
        if adapter.dtype is None:
            dtypes |= adapter.factor_dtypes or adapter.tensor_dtypes
        else:
            dtypes.add(torch.float16 if adapter.dtype == PACKED else adapter.dtype)
    return dtypes.pop() if len(dtypes) == 1 else torch.float32
