"""What a joint refit changes in an adapter: its dense vectors, and one factor per rank. Neither takes bytes in a file.

Dense vectors are the deltas of biases and norms. A rank's factor multiplies its column of `up`: files with one unit per
rank hold it exactly, in others `up` is rounded again. Factors, and dense deltas of more dimensions, stay as they are.

Around given values, a network's relative errors are a linear function of them, by exact products with the Jacobian J.
J^T u is a backward pass through the graph of the outputs. That pass is linear in u, so a backward pass through it gives
J v: twice as fast as forward-mode differentiation here, and every operator of a network that trains supports it, except
for fused attention, which is replaced by plain one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from lbm_lora.adapter import Adapter, LoraModule
from lbm_lora.apply import check_fit
from lbm_lora.naming import ParamName, weight_of

Vector = Float[Tensor, " columns"]
Rows = Float[Tensor, " rows"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """Inputs of a network with the outputs that it should have for them.

    Attributes:
        run: runs the network on a batch of inputs and returns its outputs, (n, ...); it keeps gradients if they are
            enabled. The network must be in evaluation mode: each call gives the same.
        wanted: the outputs to reach, fp32, on the network's device.
        weights: weight of each input, such as the probability of its timestep.
    """

    run: Callable[[], Tensor]
    wanted: Float[Tensor, "n *shape"]
    weights: Float[Tensor, " n"]


class Adjustable:
    """A network, and an adapter of which vectors and ranks can be adjusted together.

    The values form one vector, fp32: all dense vectors, then a factor for each rank.
    """

    def __init__(self, network: nn.Module, adapter: Adapter) -> None:
        tensors = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
        self._base = {ParamName(name): tensor.detach() for name, tensor in tensors}
        check_fit(adapter, {name: tuple(tensor.shape) for name, tensor in self._base.items()})
        self._running, self._adapter = _Running(network), adapter
        self._vectors = [name for name, delta in adapter.dense.items() if delta.ndim <= 1]
        self._modules = [_Ranks.of(module, self._base[weight_of(name)]) for name, module in adapter.modules.items()]
        others = {name: delta for name, delta in adapter.dense.items() if delta.ndim > 1}
        self._fixed = {name: self._changed(name, delta) for name, delta in others.items()}
        given = [adapter.dense[name].to(self._base[name].device, torch.float32) for name in self._vectors]
        given += [torch.ones_like(module.down[:, 0]) for module in self._modules]
        self._shapes = [value.shape for value in given]
        self.given: Vector = torch.cat([value.flatten() for value in given]) if given else torch.zeros(0)
        """Values of the given adapter."""

    def split(self, values: Vector) -> list[Tensor]:
        """Return the values of each dense vector, then the factors of each lora module."""
        parts = values.split([shape.numel() for shape in self._shapes])
        return [part.reshape(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def output(self, parts: Sequence[Tensor], sample: Sample) -> Tensor:
        """Return the network's outputs with these values, from `split`, before they are rounded."""
        count = len(self._vectors)
        changed = {name: self._changed(name, part) for name, part in zip(self._vectors, parts[:count], strict=True)}
        for module, factors in zip(self._modules, parts[count:], strict=True):
            changed[weight_of(module.module.name)] = module.weight(factors)
        return self._run({**self._fixed, **changed}, sample)

    def output_of(self, adapter: Adapter, sample: Sample) -> Tensor:
        """Return the network's outputs with an adapter of the same tensors."""
        changed = {name: self._changed(name, delta) for name, delta in adapter.dense.items()}
        for name, module in adapter.modules.items():
            changed[weight_of(name)] = self._changed(weight_of(name), module.delta())
        return self._run(changed, sample)

    def adapter(self, values: Vector) -> Adapter:
        """Return the adapter with these values, in fp32 on the CPU, not rounded yet."""
        parts, count = [part.cpu() for part in self.split(values)], len(self._vectors)
        dense = {name: delta.float() for name, delta in self._adapter.dense.items()}
        dense |= dict(zip(self._vectors, parts[:count], strict=True))
        scaled = zip(self._modules, parts[count:], strict=True)
        modules = {ranks.module.name: ranks.scaled(factors) for ranks, factors in scaled}
        return replace(self._adapter, modules=modules, dense=dense, dtype=None, grids={})

    def _changed(self, name: ParamName, delta: Tensor) -> Tensor:
        base = self._base[name]
        return (base.float() + delta.to(base.device, torch.float32)).to(base.dtype)

    def _run(self, changed: Mapping[ParamName, Tensor], sample: Sample) -> Tensor:
        replaced = {f"network.{name}": value for name, value in changed.items()}
        return functional_call(self._running, replaced, (sample.run,)).float()


class _Running(nn.Module):
    """A call that holds a network, as a module of its own: `functional_call` then runs it with other values."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, run: Callable[[], Tensor]) -> Tensor:
        return run()


@dataclass(frozen=True, eq=False)
class _Ranks:
    """A lora module on its base weight."""

    module: LoraModule
    base: Tensor
    up: Float[Tensor, "out rank"]
    down: Float[Tensor, "rank columns"]

    @classmethod
    def of(cls, module: LoraModule, base: Tensor) -> "_Ranks":
        factors = module.factors()
        return cls(module, base, factors.up.to(base.device), factors.down.to(base.device))

    def weight(self, factors: Vector) -> Tensor:
        delta = ((self.up * factors) @ self.down).reshape(self.base.shape)
        return (self.base.float() + delta).to(self.base.dtype)

    def scaled(self, factors: Vector) -> LoraModule:
        up = self.module.up.float()
        across = factors.reshape(1, -1, *(1 for _ in up.shape[2:]))
        return replace(self.module, up=up * across, down=self.module.down.float(), grid=None)


class Linearized:
    """The Jacobian of scaled outputs at given values, and the residual there. The graphs of all samples stay in memory
    while this exists.

    Args:
        weights: for each sample, weights of the squared relative errors of its inputs.

    Attributes:
        residual: wanted - output of all samples, scaled so that its square is the weighted sum of squared relative
            errors.
    """

    def __init__(
        self, adjustable: Adjustable, values: Vector, samples: Sequence[Sample], weights: Sequence[Tensor]
    ) -> None:
        self._adjustable = adjustable
        self._parts = [part.detach().clone().requires_grad_() for part in adjustable.split(values)]
        self._outputs: list[Tensor] = []
        self._zeros: list[Tensor] = []
        self._backward: list[list[Tensor]] = []
        residuals: list[Tensor] = []
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            for sample, shares in zip(samples, weights, strict=True):
                scale = _scale(sample, shares)
                output = scale * adjustable.output(self._parts, sample)
                residuals.append((scale * sample.wanted - output.detach()).flatten())
                self._outputs.append(output)
                zeros = torch.zeros_like(output, requires_grad=True)
                self._zeros.append(zeros)
                gradients = torch.autograd.grad(
                    output, self._parts, zeros, create_graph=True, allow_unused=True, materialize_grads=True
                )
                self._backward.append(list(gradients))
        self.residual: Rows = torch.cat(residuals)

    def times(self, vector: Vector) -> Rows:
        """Return J v."""
        found: list[Tensor] = []
        for zeros, backward in zip(self._zeros, self._backward, strict=True):
            pairs = [
                (gradient, part)
                for gradient, part in zip(backward, self._adjustable.split(vector), strict=True)
                if gradient.requires_grad  # a part that the outputs do not depend on has none
            ]
            (product,) = torch.autograd.grad(
                [gradient for gradient, _ in pairs], zeros, [part for _, part in pairs], retain_graph=True
            )
            found.append(product.flatten())
        return torch.cat(found)

    def transposed(self, rows: Rows) -> Vector:
        """Return J^T u."""
        total = torch.zeros_like(self._adjustable.given)
        sizes = [output.numel() for output in self._outputs]
        for output, part in zip(self._outputs, rows.split(sizes), strict=True):
            gradients = torch.autograd.grad(
                output,
                self._parts,
                part.reshape(output.shape),
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            total += torch.cat([gradient.flatten() for gradient in gradients])
        return total

    def mean_squares(self, probes: int, seed: int) -> Vector:
        """Estimate the diagonal of J^T J, the squared length of each column, from products with random signs.

        Hutchinson's estimate (Bekas, Kokiopoulou and Saad, 2007): E[(J^T u)^2] for independent signs u.
        """
        draw = torch.Generator().manual_seed(seed)
        total = torch.zeros_like(self._adjustable.given)
        for _ in range(probes):
            signs = torch.randint(0, 2, self.residual.shape, generator=draw).to(self.residual) * 2 - 1
            total += self.transposed(signs).square() / probes
        return total


def _scale(sample: Sample, weights: Float[Tensor, " n"]) -> Tensor:
    """Return sqrt(weight) / ||wanted|| of each input, to multiply its outputs with."""
    lengths = sample.wanted.flatten(1).norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    scale = weights.to(lengths).sqrt() / lengths
    return scale.reshape(-1, *(1 for _ in sample.wanted.shape[1:]))
