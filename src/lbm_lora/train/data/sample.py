"""What the data set gives: one pair of pictures, and a batch of them.

Pictures are fp32 in [-1, 1], masks fp32 in [0, 1], as elsewhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from lbm_lora.imaging.encoded import Size
from lbm_lora.shards.corrupt import Skipped


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample of an epoch: all that its pixels depend on, so that a worker needs no state."""

    index: int
    epoch: int
    size: Size
    """That the pictures are brought to."""
    repeated: bool = False
    """It only fills a batch and is seen elsewhere in the epoch: no metric should count it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One pair of pictures of one size.

    Attributes:
        index: of the sample in the data set, the same in every run over the same data.
        key: its name: the path without role and extension, or `shard.tar/key`.
        epoch: that it was drawn for.
        source, target: None where cached latents stand in for the pictures.
        mask: 1 where a pixel is valid; None where the data set has no masks.
        latents: source and target, where they are cached.
        repeated: see `Draw`.
        skipped: corrupt samples that this one was read in place of.
    """

    index: int
    key: str
    epoch: int
    source: Float[Tensor, "3 height width"] | None
    target: Float[Tensor, "3 height width"] | None
    mask: Float[Tensor, "1 height width"] | None
    latents: tuple[Float[Tensor, "channels h w"], Float[Tensor, "channels h w"]] | None = None
    repeated: bool = False
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Samples of one size, stacked; the fields are those of `Sample`."""

    indices: tuple[int, ...]
    keys: tuple[str, ...]
    epoch: int
    source: Float[Tensor, "batch 3 height width"] | None
    target: Float[Tensor, "batch 3 height width"] | None
    mask: Float[Tensor, "batch 1 height width"] | None
    latents: tuple[Float[Tensor, "batch channels h w"], Float[Tensor, "batch channels h w"]] | None
    repeated: tuple[bool, ...]
    skipped: tuple[Skipped, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The batch on a device."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from where it moves to a CUDA device while the host goes on."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, move: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            source=None if self.source is None else move(self.source),
            target=None if self.target is None else move(self.target),
            mask=None if self.mask is None else move(self.mask),
            latents=None if self.latents is None else (move(self.latents[0]), move(self.latents[1])),
        )


def collate(samples: Sequence[Sample]) -> Batch:
    """The batch of samples of one size and one epoch."""
    pairs = [sample.latents for sample in samples if sample.latents is not None]
    return Batch(
        indices=tuple(sample.index for sample in samples),
        keys=tuple(sample.key for sample in samples),
        epoch=samples[0].epoch,
        source=_stacked([sample.source for sample in samples]),
        target=_stacked([sample.target for sample in samples]),
        mask=_stacked([sample.mask for sample in samples]),
        latents=(torch.stack([source for source, _ in pairs]), torch.stack([target for _, target in pairs]))
        if pairs
        else None,
        repeated=tuple(sample.repeated for sample in samples),
        skipped=tuple(item for sample in samples for item in sample.skipped),
    )


def _stacked(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """A data set has a field for all of its samples or for none."""
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if present else None
