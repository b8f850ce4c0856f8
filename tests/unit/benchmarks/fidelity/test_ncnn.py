"""Networks of ncnn, from graphs and weights that are written here."""

import struct

import pytest
import torch
from torch.nn import functional

from benchmarks.fidelity.ncnn import NcnnNetwork


def graph(*lines: str) -> str:
    return "\n".join(["7767517", f"{len(lines) + 1} 9", "Input in 0 1 x", *lines])


def halves(values: torch.Tensor) -> bytes:
    """Weights in fp16, as ncnn stores them: a word that says so, and zeros up to a multiple of four bytes."""
    content = struct.pack("<I", 0x01306B47) + values.half().numpy().tobytes()
    return content + bytes(-len(content) % 4)


def floats(values: torch.Tensor) -> bytes:
    return bytes(4) + values.numpy().astype("<f4").tobytes()


def biases(values: torch.Tensor) -> bytes:
    return values.numpy().astype("<f4").tobytes()


def test_a_convolution_is_torchs() -> None:
    weight, bias = torch.randn(3, 2, 3, 3).half().float(), torch.randn(3)
    lines = "Convolution conv 1 1 x y 0=3 1=3 3=2 4=1 5=1 6=54 9=2 -23310=1,2.0e-1"
    image = torch.randn(1, 2, 9, 8)
    expected = functional.leaky_relu(functional.conv2d(image, weight, bias, stride=2, padding=1), 0.2)
    assert torch.equal(NcnnNetwork(graph(lines), halves(weight) + biases(bias))(image), expected)


@pytest.mark.parametrize(("size", "stride", "padding"), [(2, 2, 0), (4, 2, 3), (6, 3, 1)])
def test_a_deconvolution_is_a_convolution_of_the_same_function(size: int, stride: int, padding: int) -> None:
    weight, bias = torch.randn(2, 3, size, size), torch.randn(2)  # ncnn has the outputs first
    line = f"Deconvolution up 1 1 x y 0=2 1={size} 3={stride} 4={padding} 5=1 6={weight.numel()}"
    image = torch.randn(1, 3, 5, 7)
    network = NcnnNetwork(graph(line), floats(weight) + biases(bias))
    expected = functional.conv_transpose2d(image, weight.transpose(0, 1), bias, stride=stride, padding=padding)
    assert torch.allclose(network(image), expected, atol=1e-5)
    assert [type(module).__name__ for module in network.modules()][-1] == "Conv2d"


def test_branches_are_joined() -> None:
    weight = torch.randn(2, 4)
    network = NcnnNetwork(
        graph(
            "Split s 1 4 x a b c d",
            "Pooling mean 1 1 a p 0=1 4=1",
            "InnerProduct gate 1 1 p g 0=2 1=0 2=8 9=4",
            "Crop crop 1 1 b e -23309=2,1,2 -23310=2,-1,0 -23311=2,-2,-1",
            "Interp twice 1 1 e f 0=1 1=2.0 2=2.0",
            "Convolution narrow 1 1 f h 0=2 1=1 5=0 6=8",
            "BinaryOp gated 2 1 h g i 0=2",
            "Concat both 2 1 c d j 0=0",
            "Convolution less 1 1 j k 0=2 1=1 5=0 6=16",
            "Eltwise sum 2 1 i k l 0=1 -23301=2,2.0e-1,1.0",
        ),
        floats(weight) + floats(weight) + floats(torch.cat([weight, weight], 1)),
    )
    image = torch.randn(1, 4, 2, 4).repeat(1, 1, 2, 1)[:, :, :4]
    gate = torch.sigmoid(torch.einsum("oc,nchw->no", weight, image) / 16)[:, :, None, None]
    cropped = image[:, :, 1:3, 2:].repeat_interleave(2, 2).repeat_interleave(2, 3)
    half = torch.einsum("oc,nchw->nohw", weight, cropped)
    less = 2 * torch.einsum("oc,nchw->nohw", weight, image)
    assert torch.allclose(network(image), 0.2 * half * gate + less, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "weights", "message"),
    [
        ("hello\nworld", b"", "the graph begins with hello"),
        (graph("LSTM l 1 1 x y 0=3"), b"", "l: a layer of the kind LSTM cannot be read"),
        (graph("Split s 1 1 x y"), b"1234", "4 bytes more than the graph describes"),
        (graph("Convolution c 1 1 x y 0=1 1=1 6=1"), b"\x07\0\0\0", "weights in the form 0x00000007"),
        (graph("Convolution c 1 1 x y 0=1 1=3 2=2 6=9"), b"", "c: dilated and oblong kernels"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, weights: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NcnnNetwork(text, weights)
