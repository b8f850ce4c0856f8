"""A network's relative errors as a linear function of an adapter's values, by exact products with its Jacobian.

J^T u is a backward pass through the graph of the outputs. That pass is linear in u, so a backward pass through it gives
J v: twice as fast as forward-mode differentiation here, and every operator of a network that trains supports it, except
for fused attention, which is replaced by plain one. The graphs of all samples stay in memory while this exists.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lbm_lora.refinement.adjustable import Adjustable, Sample

Vector = Float[Tensor, " columns"]
Rows = Float[Tensor, " rows"]


class Linearized:
    """The Jacobian of scaled outputs at given values, and the residual there.

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
