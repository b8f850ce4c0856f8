"""Run one forward pass and its backward passes with hooks that accumulate the sums.

For a layer y = W x at every token position t, an error E in W changes the network's output by sum_t J_t E x_t to first
order, with J_t = d output / d y_t. With g_t = J_t^T v and random signs v, the expected square of <v, that change> is
its squared norm. If positions are uncorrelated it is the trace tr(G E C E^T), with C the mean of x_t x_t^T and G
the sum of g_t g_t^T: the "expand" form of the Kronecker factors for layers that are applied at many positions
(Eschenhagen et al., "Kronecker-Factored Approximate Curvature for Modern Neural Network Architectures", 2023, arXiv
2311.00636; for convs Grosse and Martens, 2016, arXiv 1602.01407, where x is all that the kernel covers; for wide convs
here its channels only, see `CalledLayer`).

The correlation between positions is kept as one number, the mean squared norm of sum_t g_t x_t^T, the gradient of W.

A vector, such as a bias, acts at all positions together. Its gradient g, the sum over positions, is short enough to
keep its second moment, the mean of g g^T: an error e in it changes the output's square by e^T (g g^T) e to first order.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lbm_lora.calibration.layers import CalledLayer, matrices, unmeasured, vectors
from lbm_lora.calibration.statistics import LazyMoments, Name, Origin, Statistics
from lbm_lora.calibration.sums import Sums
from lbm_lora.errors import InputError
from lbm_lora.factorize import Moment, MomentAccumulator
from lbm_lora.fidelity.points import generator
from lbm_lora.naming import ModuleName

_POSITIONS = 4096  # unfolded at once
Probe = Callable[[Sequence[int]], Tensor]
"""A random direction of the output, drawn in its shape."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One run of a network.

    Attributes:
        forward: runs the network and returns its output, with its graph.
        key: seed of its probes, with their number.
        label: what messages call its output.
    """

    forward: Callable[[], Tensor]
    weight: float
    key: tuple[object, ...]
    label: str


def add_sample(
    network: nn.Module, layers: Mapping[ModuleName, CalledLayer], sample: Sample, probes: int, sums: Sums
) -> None:
    """Measure one sample, with independent signs as probes: they estimate squared norms with the least variance
    (Hutchinson, 1989).
    """
    draws = [generator(*sample.key, "probe", probe) for probe in range(probes)]
    signs = [partial(random_signs, draw=draw) for draw in draws]
    try:
        measure(network, layers, sample.forward, signs, sample.weight, sums)
    except FloatingPointError:
        raise InputError(
            f"{sample.label} has values that are not finite. Are the weights damaged? In bf16, try float."
        ) from None


def random_signs(shape: Sequence[int], draw: torch.Generator) -> Tensor:
    return torch.randint(0, 2, tuple(shape), generator=draw).float() * 2 - 1


def measure(
    network: nn.Module,
    layers: Mapping[ModuleName, CalledLayer],
    forward: Callable[[], Tensor],
    probes: Sequence[Probe],
    weight: float,
    sums: Sums,
) -> None:
    """Run the network forward on one sample and backward once per probe; add inputs and gradients to `sums`.

    Activation checkpointing may be on: activations recomputed in the backward pass are not counted twice.

    Args:
        layers: layers from `find_layers`. All calls of a layer count together: E has the same effect in each.
        probes: each returns a tensor of the output's shape, with independent values of mean 0 and variance 1.
    """
    with _Hooks(network, layers, sums, weight, len(probes)) as hooks:
        output = forward()
        if not torch.isfinite(output).all():
            raise FloatingPointError
        sums.values += weight * output.numel()
        sums.energy += weight * _energy(output)
        hooks.is_backward = True
        for index, probe in enumerate(probes):
            output.backward(probe(output.shape).to(output), retain_graph=index + 1 < len(probes))
            hooks.take_vectors()


def statistics_of(
    network: nn.Module,
    layers: Mapping[ModuleName, CalledLayer],
    sums: Sums,
    origin: Origin,
    digests: tuple[str, ...] = (),
) -> Statistics:
    """Return the means of sums, with the digests of images (see `Statistics.image_digests`)."""

    def means(of: Mapping[Name, MomentAccumulator]) -> Mapping[Name, Moment]:
        return LazyMoments(of, lambda name: of[name].result(sums.images))

    return Statistics(
        layers=layers,
        inputs=means(sums.inputs),
        outputs=means(sums.outputs),
        gradients={name: total / sums.images for name, total in sums.gradients.items()},
        vectors=means({name: found for name, found in sums.vectors.items() if not found.is_zero}),
        output_values=sums.values / sums.images,
        output_energy=sums.energy / sums.images,
        origin=origin,
        image_digests=digests,
        unmeasured=unmeasured(network),
    )


@contextmanager
def checkpointed(network: nn.Module, *, when: bool) -> Generator[None, None, None]:
    """Keep only the inputs of the network's blocks for the backward pass, and recompute the rest."""
    if when:
        network.enable_gradient_checkpointing()  # pyright: ignore[reportCallIssue]
    try:
        yield
    finally:
        if when:
            network.disable_gradient_checkpointing()  # pyright: ignore[reportCallIssue]


class _Hooks:
    """Hooks for one sample, active inside the context.

    Weights and vectors require gradients meanwhile, and keep none. Those that they had are put back at the end.
    """

    def __init__(
        self, network: nn.Module, layers: Mapping[ModuleName, CalledLayer], sums: Sums, weight: float, probes: int
    ) -> None:
        self.is_backward = False
        self._modules = [(name, module) for name, module in matrices(network) if name in layers]
        self._vectors = [(name, vector) for name, vector in vectors(network) if name in sums.vectors]
        self._layers, self._sums = layers, sums
        self._weight, self._probe_weight = weight, weight / probes

    def __enter__(self) -> "_Hooks":
        measured = [*(module.weight for _, module in self._modules), *(vector for _, vector in self._vectors)]
        self._before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in measured]
        for parameter in measured:
            parameter.requires_grad_(True)
            parameter.grad = None
        self._handles = [one.register_forward_hook(partial(self._on_forward, name)) for name, one in self._modules]
        self._handles += [
            one.weight.register_post_accumulate_grad_hook(partial(self._on_weight, name)) for name, one in self._modules
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        for parameter, is_trained, gradient in self._before:
            parameter.requires_grad_(is_trained)
            parameter.grad = gradient

    def take_vectors(self) -> None:
        """Add the gradients of the vectors to the sums, after a backward pass, when all calls have contributed."""
        for name, vector in self._vectors:
            if vector.grad is not None:
                self._sums.vectors[name].add(vector.grad[None], self._probe_weight)
                vector.grad = None

    def _on_forward(self, name: ModuleName, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self.is_backward:
            return  # a checkpointed block is recomputed
        layer = self._layers[name]
        if layer.inputs == name:
            sums, share = self._sums.inputs[name], self._weight / layer.calls
            if sums.size == layer.shape[1]:
                rows = _rows(inputs[0], layer)
                sums.add(rows, share / len(rows))
            else:
                _add_covered(sums, cast(nn.Conv2d, module), inputs[0], share)
        if output.requires_grad:  # not within a part that runs without gradients
            output.register_hook(partial(self._on_gradient, name))

    def _on_gradient(self, name: ModuleName, gradient: Tensor) -> None:
        self._sums.outputs[name].add(_rows(gradient, self._layers[name]), self._probe_weight)

    def _on_weight(self, name: ModuleName, weight: Tensor) -> None:
        if weight.grad is not None:
            self._sums.gradients[name] += self._probe_weight * _energy(weight.grad)
            weight.grad = None  # immediately: all gradients together would take as much memory as the model


def _rows(values: Tensor, layer: CalledLayer) -> Float[Tensor, "tokens features"]:
    """Return the vectors at all positions: of a linear (..., features), of a conv (batch, features, rows, columns)."""
    channels_last = values.movedim(1, -1) if len(layer.shape) == 4 else values
    return channels_last.detach().flatten(0, -2)


def _add_covered(sums: MomentAccumulator, conv: nn.Conv2d, inputs: Tensor, weight: float) -> None:
    """Add what the kernel covers at every position, in (in, kh, kw) order, a few rows of positions at a time."""
    (kernel, _), (stride, _), (dilation, _) = conv.kernel_size, conv.stride, conv.dilation
    padded = _padded(conv, inputs.detach())
    reach = dilation * (kernel - 1) + 1
    height = (padded.shape[2] - reach) // stride + 1
    width = (padded.shape[3] - conv.dilation[1] * (conv.kernel_size[1] - 1) - 1) // conv.stride[1] + 1
    step = max(1, _POSITIONS // (width * len(padded)))
    for start in range(0, height, step):
        stop = min(start + step, height)
        part = padded[:, :, start * stride : (stop - 1) * stride + reach]
        covered = nn.functional.unfold(part, conv.kernel_size, dilation=conv.dilation, stride=conv.stride)
        sums.add(covered.mT.flatten(0, 1), weight / (len(padded) * height * width))


def _padded(conv: nn.Conv2d, inputs: Tensor) -> Tensor:
    if conv.padding == "valid":
        return inputs
    sizes: list[int] = []
    for axis in (1, 0):  # of the last axis first
        if conv.padding == "same":
            total = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
            sizes += [total // 2, total - total // 2]
        else:
            sizes += [int(conv.padding[axis])] * 2
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return nn.functional.pad(inputs, sizes, mode=mode)


def _energy(values: Tensor) -> float:
    """Return the squared norm, in fp64: squares of small gradients leave the range of fp32."""
    return torch.linalg.vector_norm(values.detach(), dtype=torch.float64).item() ** 2
