"""Read a network of ncnn, a graph as text (.param) and its weights (.bin), as a module of torch.

Both files are described in ncnn's documentation ("param and model file structure", "operators"). Only what the networks
of `networks` contain is read. A deconvolution becomes the same function as a convolution: of s x s times the channels,
which are then the pixels of a block (Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016,
arXiv 1609.07009). All weights are thus those of linear and conv layers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

_MAGIC = "7767517"
_HALF = 0x01306B47  # precedes weights in fp16
_FIRST_ARRAY = -23300  # key of the first parameter, if it is an array


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One line of the graph: kind and name of a layer, its inputs and outputs, and numbers by key."""

    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    numbers: Mapping[int, list[float]]

    def number(self, key: int, default: int = 0) -> int:
        return int(self.numbers[key][0]) if key in self.numbers else default

    def array(self, key: int) -> list[float]:
        return self.numbers.get(_FIRST_ARRAY - key, [])


class NcnnNetwork(nn.Module):
    """A network of ncnn.

    Args:
        graph: text of the .param file.
        weights: content of the .bin file.

    Raises:
        ValueError: the files have another format, or contain layers or settings that are not read.
    """

    def __init__(self, graph: str, weights: bytes) -> None:
        super().__init__()
        magic, _, *lines = graph.splitlines()
        if magic != _MAGIC:
            raise ValueError(f"the graph begins with {magic}, not {_MAGIC}.")
        self._lines = [_parsed(line) for line in lines if line.strip()]
        reader = _Reader(weights)
        for line in self._lines:
            if line.kind in _MATRICES:
                self.add_module(line.name, _MATRICES[line.kind](line, reader))
            elif line.kind not in _OPERATIONS and line.kind != "Input":
                raise ValueError(f"{line.name}: a layer of the kind {line.kind} cannot be read.")
        if reader.left:
            raise ValueError(f"the weights contain {reader.left} bytes more than the graph describes.")

    def forward(self, image: Tensor) -> Tensor:
        """Run the network on (n, channels, height, width)."""
        values: dict[str, Tensor] = {}
        result = image
        for line in self._lines:
            inputs = [values.pop(name) for name in line.inputs]
            if line.kind == "Input":
                result = image
            elif line.kind in _MATRICES:
                result = _activation(line)(cast(nn.Module, getattr(self, line.name))(*inputs))
            else:
                result = _OPERATIONS[line.kind](line, inputs)
            values.update(dict.fromkeys(line.outputs, result))
        return result


class _Reader:
    """Reads arrays one after the other."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    @property
    def left(self) -> int:
        return len(self._content) - self._at

    def weights(self, count: int) -> Tensor:
        """Read weights, which begin with a word that says how they are stored."""
        form = int(self._take("<u4", 1)[0])
        if form not in (0, _HALF):
            raise ValueError(f"weights in the form {form:#010x} cannot be read.")
        values = self._take("<f2" if form else "<f4", count)
        self._at += -self._at % 4
        return torch.from_numpy(values.astype(np.float32))

    def biases(self, count: int) -> Tensor:
        return torch.from_numpy(self._take("<f4", count).astype(np.float32))

    def _take(self, form: str, count: int) -> np.ndarray:
        values = np.frombuffer(self._content, form, count, self._at)
        self._at += values.nbytes
        return values


class _Deconvolution(nn.Module):
    """A transposed convolution of a kernel that is a multiple of its stride."""

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> None:
        super().__init__()
        outputs, inputs, size, _ = weight.shape
        reach = size // stride
        blocks = weight.unflatten(3, (reach, stride)).unflatten(2, (reach, stride)).flip(2, 4)
        matrix = blocks.permute(0, 3, 5, 1, 2, 4).reshape(outputs * stride**2, inputs, reach, reach)
        spread = None if bias is None else bias.repeat_interleave(stride**2)
        self.conv = _conv(matrix, spread, padding=reach - 1)
        self._stride, self._padding = stride, padding

    def forward(self, values: Tensor) -> Tensor:
        complete = functional.pixel_shuffle(self.conv(values), self._stride)
        return functional.pad(complete, [-self._padding] * 4)


def _parsed(line: str) -> _Line:
    kind, name, inputs, outputs, *words = line.split()
    inner, outer = int(inputs), int(inputs) + int(outputs)
    numbers: dict[int, list[float]] = {}
    for word in words[outer:]:
        key, _, text = word.partition("=")
        found = [float(part) for part in text.split(",")]
        numbers[int(key)] = found[1:] if int(key) <= _FIRST_ARRAY else found
    return _Line(kind=kind, name=name, inputs=words[:inner], outputs=words[inner:outer], numbers=numbers)


def _convolution(line: _Line, reader: _Reader) -> nn.Module:
    return _conv(*_square(line, reader), line.number(3, 1), line.number(4))


def _deconvolution(line: _Line, reader: _Reader) -> nn.Module:
    weight, bias = _square(line, reader)
    stride = line.number(3, 1)
    if weight.shape[-1] % stride:
        raise ValueError(f"{line.name}: a kernel of {weight.shape[-1]} with stride {stride} cannot be read.")
    return _Deconvolution(weight, bias, stride, line.number(4))


def _inner_product(line: _Line, reader: _Reader) -> nn.Module:
    """Read a linear layer, which follows a mean over the image: a conv of one pixel."""
    outputs = line.number(0)
    weight = reader.weights(line.number(2)).reshape(outputs, -1, 1, 1)
    return _conv(weight, reader.biases(outputs) if line.number(1) else None)


def _square(line: _Line, reader: _Reader) -> tuple[Tensor, Tensor | None]:
    """Read a conv's weight (out, in, size, size) and bias."""
    outputs, size = line.number(0), line.number(1)
    if line.number(2, 1) != 1 or line.number(11, size) != size:
        raise ValueError(f"{line.name}: dilated and oblong kernels cannot be read.")
    weight = reader.weights(line.number(6)).reshape(outputs, -1, size, size)
    return weight, reader.biases(outputs) if line.number(5) else None


def _conv(weight: Tensor, bias: Tensor | None, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    outputs, inputs, size, _ = weight.shape
    conv = nn.Conv2d(inputs, outputs, size, stride, padding, bias=bias is not None)
    conv.weight = nn.Parameter(weight)
    if bias is not None:
        conv.bias = nn.Parameter(bias)
    return conv


def _activation(line: _Line) -> Callable[[Tensor], Tensor]:
    match line.number(9):
        case 0:
            return lambda values: values
        case 1:
            return torch.relu
        case 2:
            (slope,) = line.array(10)
            return lambda values: functional.leaky_relu(values, slope)
        case 4:
            return torch.sigmoid
        case other:
            raise ValueError(f"{line.name}: the activation {other} cannot be read.")


def _binary(line: _Line, inputs: list[Tensor]) -> Tensor:
    first, second = inputs
    if line.number(0) == 2:
        return first * second
    if line.number(0) == 0:
        return first + second
    raise ValueError(f"{line.name}: the operation {line.number(0)} cannot be read.")


def _sum(line: _Line, inputs: list[Tensor]) -> Tensor:
    factors = line.array(1) or [1.0] * len(inputs)
    return torch.stack([values * factor for values, factor in zip(inputs, factors, strict=True)]).sum(0)


def _crop(line: _Line, inputs: list[Tensor]) -> Tensor:
    (values,) = inputs
    for start, end, axis in zip(line.array(9), line.array(10), line.array(11), strict=True):
        values = values.narrow(int(axis), int(start), values.shape[int(axis)] - int(start) + int(end))
    return values


_MATRICES: Mapping[str, Callable[[_Line, _Reader], nn.Module]] = {
    "Convolution": _convolution,
    "Deconvolution": _deconvolution,
    "InnerProduct": _inner_product,
}
_OPERATIONS: Mapping[str, Callable[[_Line, list[Tensor]], Tensor]] = {
    "BinaryOp": _binary,
    "Concat": lambda _, inputs: torch.cat(inputs, 1),
    "Crop": _crop,
    "Eltwise": _sum,
    "Interp": lambda line, inputs: functional.interpolate(inputs[0], scale_factor=line.numbers[1][0]),
    "Pooling": lambda _, inputs: inputs[0].mean((2, 3), keepdim=True),
    "Split": lambda _, inputs: inputs[0],
}
