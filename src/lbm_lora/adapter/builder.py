"""An adapter that comes piece by piece, kept in memory: what `AdapterWriter` is for a file."""

import torch
from torch import Tensor

from lbm_lora.adapter.metadata import AdapterMetadata
from lbm_lora.adapter.module import Adapter, LoraModule
from lbm_lora.factorize import PACKED, Grid
from lbm_lora.naming import ModuleName, ParamName


class AdapterBuilder:
    """Collects lora modules and dense deltas.

    Args:
        dtype: of a file of the adapter.
        metadata: as far as it is known; may be replaced until the end.
    """

    def __init__(self, prefix: str, dtype: torch.dtype, metadata: AdapterMetadata) -> None:
        self.metadata = metadata
        self._prefix, self._dtype = prefix, dtype
        self._modules: dict[ModuleName, LoraModule] = {}
        self._dense: dict[ParamName, Tensor] = {}
        self._grids: dict[ParamName, Grid] = {}

    def add_module(self, module: LoraModule) -> None:
        self._modules[module.name] = module

    def add_dense(self, name: ParamName, delta: Tensor, grid: Grid | None = None) -> None:
        self._dense[name] = delta
        if grid is not None:
            self._grids[name] = grid

    def adapter(self) -> Adapter:
        """The adapter built from the parts added so far."""
        dtype = self._dtype if self._dtype in (torch.int8, PACKED) else None
        return Adapter(
            dict(self._modules), dict(self._dense), self.metadata, self._prefix, dtype=dtype, grids=dict(self._grids)
        )
