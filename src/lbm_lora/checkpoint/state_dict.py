"""A state dict in memory, read by name as a file is."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lbm_lora.checkpoint.spec import TensorSpec
from lbm_lora.errors import CheckpointError


class StateDict:
    """A read-only view of tensors by name: `specs` in the order of the mapping, and `read`.

    Args:
        path: what errors call it.
        tensors: name -> tensor, of any device.
    """

    metadata: Mapping[str, str] = {}

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        strange = next((key for key, value in tensors.items() if not isinstance(value, Tensor)), None)  # pyright: ignore[reportUnnecessaryIsInstance]
        if strange is not None:
            raise CheckpointError(
                f"{path}: {strange} is of type {type(tensors[strange]).__name__}. A state dict holds tensors by name: "
                "give module.state_dict()."
            )
        if not tensors:
            raise CheckpointError(f"{path} holds no tensors.")
        self._tensors = tensors
        self.specs: Mapping[str, TensorSpec] = {name: TensorSpec.of(tensor) for name, tensor in tensors.items()}

    def read(self, name: str) -> Tensor:
        """The tensor `name` in its own dtype, on the CPU; not a copy where it lies there already."""
        return self._tensors[name].detach().cpu().contiguous()
