"""Factors without a scaling and of one rank, for readers that look for neither; and the way back.

diffusers up to 0.39 scales a file of several ranks wrongly, and a bare path drops every alpha. So the scaling goes into
`up`, and rows and columns of zeros fill each module up to the highest rank: the product stays the same to the bit.
Where the zeros would be more than twice the factors, the ranks stay as they are. Dense matrices become factors too, one
of them the identity.

The file's header says under `KEY` what each module was. The way back is written down only where it gives the same bits,
and taken only where the file still is as it was written.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from lbm_lora.adapter.module import LoraModule
from lbm_lora.factorize import down_shape, factorize, rank_bound, to_matrix, up_shape
from lbm_lora.naming import ModuleName, ParamName, weight_of
from lbm_lora.plain_text import parse_json

KEY = "lbm_lora_before_padding"
"""Header entry: `Before` as JSON."""
_MOST_PADDING = 2  # times the bytes of the factors


@dataclass(frozen=True)
class Before:
    """The form of an adapter before its export, to restore it on reading.

    Attributes:
        prefix: the adapter's.
        ranks, alphas: of the modules in the order of their names; alpha is None where it does not lead back.
        matrices: modules that were dense, as places in that order.
        replaced: torch's name for the dtype of the deltas that were added to the base's values; empty if that does not
            lead back.
    """

    prefix: str
    ranks: list[int]
    alphas: list[float | None]
    matrices: list[int]
    replaced: str = ""

    def encoded(self) -> str:
        """Return the value of the header entry."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def of_header(cls, header: Mapping[str, str]) -> "Before | None":
        """Invert `encoded`; None for a file of another program, or an entry that is not ours."""
        try:
            before = cls(**parse_json(header.get(KEY, "")))
        except (ValueError, TypeError):
            return None
        return before if before._is_ours() else None

    def _is_ours(self) -> bool:
        """Return whether the fields are what `to_one_rank` writes; those of a file can be anything."""
        fields: list[object] = [self.ranks, self.alphas, self.matrices]
        if not all(isinstance(field, list) for field in fields) or len(self.ranks) != len(self.alphas):
            return False
        alphas_fit = all(
            alpha is None or _is_alpha(alpha, rank) for alpha, rank in zip(self.alphas, self.ranks, strict=True)
        )
        texts: list[object] = [self.prefix, self.replaced]
        wholes: list[object] = [*self.ranks, *self.matrices]
        return alphas_fit and all(isinstance(one, str) for one in texts) and all(isinstance(one, int) for one in wholes)


def _is_alpha(alpha: object, rank: object) -> bool:
    """Return whether a module's scaling can have been folded: an alpha of 0 leads nowhere back."""
    return isinstance(alpha, int | float) and (alpha != 0 or alpha == rank)


@dataclass(frozen=True)
class OneRank:
    """Modules that all have one rank, and the way back to those they had.

    Attributes:
        modules: with alpha = rank.
        before: the way back.
        padding: bytes of zeros that were added; None if the modules kept their ranks.
    """

    modules: Mapping[ModuleName, LoraModule]
    before: Before
    padding: int | None

    @property
    def ranks(self) -> dict[ModuleName, int]:
        return {name: module.rank for name, module in self.modules.items()}


def to_one_rank(
    modules: Mapping[ModuleName, LoraModule], matrices: Mapping[ModuleName, Tensor], prefix: str
) -> OneRank:
    """Return modules with the scaling in `up`, in fp32 where its dtype would round it, padded to one rank.

    Args:
        matrices: dense deltas of weights, linear or conv, of other modules.
        prefix: the adapter's, kept for the way back.
    """
    given = {**modules, **{name: _of_matrix(name, delta) for name, delta in matrices.items()}}
    folded = {name: _folded(module) for name, module in given.items()}
    rank = max((module.rank for module in folded.values()), default=1)
    nbytes = sum(module.up.nbytes + module.down.nbytes for module in folded.values())
    padding = sum((rank - module.rank) * _rank_nbytes(module) for module in folded.values())
    is_mixed = padding > _MOST_PADDING * nbytes
    names = sorted(given)
    before = Before(
        prefix,
        [given[name].rank for name in names],
        [_recoverable_alpha(given[name], folded[name]) for name in names],
        [place for place, name in enumerate(names) if name in matrices],
    )
    padded = folded if is_mixed else {name: _padded(module, rank) for name, module in folded.items()}
    return OneRank(padded, before, None if is_mixed else padding)


def _of_matrix(name: ModuleName, delta: Tensor) -> LoraModule:
    shape = tuple(delta.shape)
    rank = rank_bound(shape)
    factors = factorize(to_matrix(delta.float()), rank, delta.dtype, seed=0)
    down, up = factors.down.reshape(down_shape(shape, rank)), factors.up.reshape(up_shape(shape, rank))
    return LoraModule(name, down, up, float(rank))


def _folded(module: LoraModule) -> LoraModule:
    if module.alpha == module.rank:
        return module
    exact = module.up.double() * module.scaling
    stored = exact.to(module.up.dtype)
    is_exact = torch.equal(stored.double(), exact)
    return replace(module, up=stored if is_exact else exact.float(), alpha=float(module.rank))


def _unfolded(up: Tensor, rank: int, alpha: float, dtype: torch.dtype) -> Tensor:
    return (up.double() * (rank / alpha)).to(dtype)


def _recoverable_alpha(module: LoraModule, folded: LoraModule) -> float | None:
    """Return the alpha that leads back to the same bits; None if it does not."""
    if module.alpha == module.rank:
        return module.alpha
    if module.alpha == 0 or module.up.dtype != module.down.dtype:
        return None
    back = _unfolded(folded.up, module.rank, module.alpha, module.down.dtype)
    return module.alpha if torch.equal(back, module.up) else None


def _rank_nbytes(module: LoraModule) -> int:
    return (module.up.nbytes + module.down.nbytes) // module.rank


def _padded(module: LoraModule, rank: int) -> LoraModule:
    missing = rank - module.rank
    if not missing:
        return module
    up, down = module.up, module.down
    right, below = up.new_zeros(up.shape[0], missing, *up.shape[2:]), down.new_zeros(missing, *down.shape[1:])
    return replace(module, up=torch.cat((up, right), dim=1), down=torch.cat((down, below)), alpha=float(rank))


def as_before(
    modules: Mapping[ModuleName, LoraModule], before: Before
) -> tuple[dict[ModuleName, LoraModule], dict[ParamName, Tensor]]:
    """Return modules and dense matrices as they were before `to_one_rank`.

    Modules that were changed since then stay as they are, and so do all where their number was.
    """
    names = sorted(modules)
    if len(before.ranks) != len(names):
        return dict(modules), {}
    rows = zip(names, before.ranks, before.alphas, strict=True)
    found = {name: _module_before(modules[name], rank, alpha) for name, rank, alpha in rows}
    dense = {names[place]: _dense(found[names[place]]) for place in before.matrices if 0 <= place < len(names)}
    kept = {name: found[name] for name in modules if dense.get(name) is None}
    return kept, {weight_of(name): delta for name, delta in dense.items() if delta is not None}


def _module_before(module: LoraModule, rank: int, alpha: float | None) -> LoraModule:
    is_as_written = module.alpha == module.rank and 1 <= rank <= module.rank
    if not is_as_written or module.up[:, rank:].any() or module.down[rank:].any():
        return module
    up, down = module.up[:, :rank].contiguous(), module.down[:rank]
    if alpha is None or alpha == rank:
        return replace(module, up=up, down=down, alpha=float(rank))
    return replace(module, up=_unfolded(up, rank, alpha, down.dtype), down=down, alpha=alpha)


def _dense(module: LoraModule) -> Tensor | None:
    """Return the delta of a module with the identity as one factor; None if it has none any more."""
    delta = module.factors().dense()
    return None if delta is None else delta.to(module.down.dtype).reshape(module.shape)
