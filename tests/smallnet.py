"""A network that is no LBM, and the extraction of two checkpoints in one call, for the tests."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lbm_lora.adapter import Adapter, Ledger, LedgerRow
from lbm_lora.checkpoint import Fingerprint, open_checkpoint
from lbm_lora.extraction import DeltaSettings, DirectPass, plan_extraction
from lbm_lora.factorize import FixedRank


class SmallNet(nn.Module):
    """Strided conv, batch norm with its running values and counter, 1x1 conv, group norm, two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.point = nn.Conv2d(8, 6, 1)
        self.norm = nn.GroupNorm(2, 6)
        self.head = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 5, bias=False))

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.bn1(self.stem(images)))
        return self.head(self.norm(self.point(hidden)).mean((2, 3)))


class OneOfEach(nn.Module):
    """One of each kind of module that training tells apart: plain, grouped and dilated convs, a norm, two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, 8, 3, padding=1)
        self.conv_out = nn.Conv2d(8, 2, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.dilated = nn.Conv2d(8, 8, 3, dilation=2)
        self.norm = nn.GroupNorm(2, 8)
        self.attn1 = nn.Linear(8, 8, bias=False)
        self.attn2 = nn.Linear(8, 6)


def small_net(seed: int) -> SmallNet:
    """The network in eval mode, every tensor of it random, its counter equal to the seed."""
    net = SmallNet().eval()
    generator = torch.Generator().manual_seed(seed)
    for tensor in net.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.5 + 0.25)
        else:
            tensor.fill_(seed)
    return net


def small_state(seed: int, prefix: str = "") -> dict[str, Tensor]:
    """Its state, each key with a prefix."""
    return {prefix + name: tensor for name, tensor in small_net(seed).state_dict().items()}


@dataclass
class Extracted:
    """All that one extraction gives."""

    adapter: Adapter
    ledger: Ledger
    base: Fingerprint
    tuned: Fingerprint

    def row(self, name: str) -> LedgerRow:
        return next(row for row in self.ledger if row.name == name)


def extract_files(
    base: Path,
    tuned: Path,
    *,
    rank: int = 4,
    conv_rank: int = 2,
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    keep_dense: bool = True,
    **settings: Any,
) -> Extracted:
    """The adapter and the ledger of two checkpoint files, in memory."""
    first, second = (open_checkpoint(path).component() for path in (base, tuned))
    ranks = FixedRank(linear=rank, conv=conv_rank)
    plan = plan_extraction(first, second, ranks, include=include, exclude=exclude, keep_dense=keep_dense)
    extraction = DirectPass([plan], DeltaSettings(**settings))
    outcomes = [outcome for (outcome,) in extraction]
    modules = {outcome.module.name: outcome.module for outcome in outcomes if outcome.module is not None}
    dense = {outcome.row.name: outcome.dense for outcome in outcomes if outcome.dense is not None}
    ledger = Ledger(tuple(outcome.row for outcome in outcomes))
    return Extracted(Adapter(modules, dense, prefix=second.prefix), ledger, *extraction.fingerprints())


def tensors_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The floating point tensors of a state."""
    return {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
