"""The LoRA as a value: an immutable set of lora modules, dense deltas and metadata."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from lbm_lora.adapter.metadata import AdapterMetadata
from lbm_lora.errors import AdapterError
from lbm_lora.factorize import Factors, dense_dtype, rounded, stored_factors
from lbm_lora.naming import ModuleName, ParamName, leaf_of, module_of, weight_of


@dataclass(frozen=True)
class LoraModule:
    """The low-rank delta of one weight: scaling * up @ down.

    Attributes:
        name: module name, without the component's prefix.
        down: (rank, in) or (rank, in, kh, kw).
        up: (out, rank) or (out, rank, 1, 1).
        alpha: scaling = alpha / rank.
    """

    name: ModuleName
    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that this module belongs to."""
        return (self.up.shape[0], *self.down.shape[1:])

    def cast(self, dtype: torch.dtype) -> "LoraModule":
        """The module as a file of `dtype` holds it, with the same alpha.

        Raises:
            InputError: a value leaves the range of `dtype`.
        """
        stored = stored_factors(self.up.float().flatten(1), self.down.float().flatten(1), dtype)
        return replace(self, up=stored.up.reshape(self.up.shape), down=stored.down.reshape(self.down.shape))

    def factors(self) -> Factors:
        """The two as matrices in fp32, with the scaling in `up`."""
        return Factors(self.scaling * self.up.float().flatten(1), self.down.float().flatten(1))

    def delta(self) -> Tensor:
        """scaling * up @ down in fp32, in the weight's shape."""
        return self.factors().product().reshape(self.shape)


@dataclass(frozen=True)
class Adapter:
    """Lora modules by module name, dense deltas by param name.

    Tensors keep the dtype of the file and may be views of it, but for factors in 8 bits.

    Attributes:
        prefix: of the component in its checkpoint (`denoiser.` for an LBM, empty where there is none).
        dtype: of a file of it: int8 where factors are exact in 8 bits and meant to be stored so (they are fp32 in
            memory then, and dense deltas fp16); None is the dtype of the tensors.
        path: the file it was read from, for messages.
    """

    modules: Mapping[ModuleName, LoraModule]
    dense: Mapping[ParamName, Tensor]
    metadata: AdapterMetadata = field(default_factory=AdapterMetadata)
    prefix: str = ""
    path: Path | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        both = [name for name in self.dense if self.module_at(name) is not None]
        if both:
            raise AdapterError(f"{self.path}: {both[0]} has both factors and a dense delta. Remove one of them.")

    @property
    def params(self) -> list[ParamName]:
        """Every param name that the adapter changes."""
        return [*(weight_of(name) for name in self.modules), *self.dense]

    def shape_of(self, name: ParamName) -> tuple[int, ...] | None:
        """The shape that a parameter must have for this adapter; None where the adapter leaves it alone."""
        if name in self.dense:
            return tuple(self.dense[name].shape)
        module = self.module_at(name)
        return None if module is None else module.shape

    def delta(self, name: ParamName) -> Tensor | None:
        """The delta of one parameter in fp32 and in its shape; None where the adapter leaves it alone."""
        if name in self.dense:
            return self.dense[name].float()
        module = self.module_at(name)
        return None if module is None else module.delta()

    def module_at(self, name: ParamName) -> LoraModule | None:
        """The lora module of a weight; None where it has none."""
        return self.modules.get(module_of(name)) if leaf_of(name) == "weight" else None

    def cast(self, dtype: torch.dtype) -> "Adapter":
        """The adapter as a file of `dtype` holds it: fp32, fp16, bf16, or int8.

        Raises:
            InputError: a value leaves the range of `dtype`.
        """
        return replace(
            self,
            modules={name: module.cast(dtype) for name, module in self.modules.items()},
            dense={name: rounded(delta, dense_dtype(dtype)) for name, delta in self.dense.items()},
            dtype=torch.int8 if dtype == torch.int8 else None,
        )

    def filtered(self, keep: Callable[[ParamName], bool]) -> "Adapter":
        """The part of the adapter whose param names `keep` accepts."""
        return replace(
            self,
            modules={name: module for name, module in self.modules.items() if keep(weight_of(name))},
            dense={name: delta for name, delta in self.dense.items() if keep(name)},
        )
