"""Whether an adapter is what its file holds: a part of it, or another precision, has the path of the file too."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lbm_lora.adapter.adapter_file import load_adapter
from lbm_lora.adapter.module import Adapter
from lbm_lora.errors import InputError


def is_unchanged(adapter: Adapter) -> bool:
    """Return whether an adapter's file, read again, gives the same adapter."""
    if adapter.path is None:
        return False
    try:
        stored = load_adapter(adapter.path)
    except InputError:
        return False
    return _facts(stored) == _facts(adapter) and all(
        torch.equal(one, other) for one, other in zip(_values(stored), _values(adapter), strict=True)
    )


def _facts(adapter: Adapter) -> tuple[object, ...]:
    """Return all that tells adapters apart besides values."""
    modules = [(name, module.alpha, module.grid is None) for name, module in sorted(adapter.modules.items())]
    shapes = [(value.shape, value.dtype) for value in _values(adapter)]
    return adapter.metadata, adapter.prefix, adapter.dtype, adapter.file_format, modules, sorted(adapter.dense), shapes


def _values(adapter: Adapter) -> Iterator[Tensor]:
    for _, module in sorted(adapter.modules.items()):
        yield from (module.up, module.down)
    for _, delta in sorted(adapter.dense.items()):
        yield delta
