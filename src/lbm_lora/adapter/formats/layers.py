"""An adapter as layers of PEFT and of diffusers: factors without a scaling and of one rank, and the way back.

diffusers up to 0.39 scales a file of several ranks wrongly, and a bare path drops every alpha. So the scaling goes into
`up`, and rows and columns of zeros fill each module up to the highest rank: the product stays the same to the bit.
Where the zeros would be more than twice the factors, the ranks stay as they are. Dense matrices become factors too, one
of them the identity.

The file's header says under `KEY` what each module was. The way back is written down only where it gives the same bits,
and taken only where the file still is as it was written.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor

from lbm_lora.adapter.formats.names import is_norm
from lbm_lora.adapter.formats.rebuild import module_of_matrix
from lbm_lora.adapter.module import Adapter, LoraModule
from lbm_lora.errors import plural
from lbm_lora.factorize import has_matrix_view
from lbm_lora.naming import ModuleName, ParamName, bias_of, leaf_of, module_of, weight_of
from lbm_lora.plain_text import parse_json

KEY = "lbm_lora_before_padding"
"""Header entry: `Before` as JSON."""
_MOST_PADDING = 2  # times the bytes of the factors


@dataclass(frozen=True)
class DenseKinds:
    """Dense deltas by kind.

    Attributes:
        matrices: of weights that could have factors, by module.
        biases: of layers, not of norms.
        norms: weights and biases of norms.
        others: none of these.
    """

    matrices: dict[ModuleName, Tensor] = field(default_factory=dict[ModuleName, Tensor])
    biases: dict[ParamName, Tensor] = field(default_factory=dict[ParamName, Tensor])
    norms: dict[ParamName, Tensor] = field(default_factory=dict[ParamName, Tensor])
    others: dict[ParamName, Tensor] = field(default_factory=dict[ParamName, Tensor])


def dense_kinds(dense: Mapping[ParamName, Tensor]) -> DenseKinds:
    """Sort dense deltas by their names and shapes."""
    kinds = DenseKinds()
    for name, delta in dense.items():
        if is_norm(name):
            kinds.norms[name] = delta
        elif leaf_of(name) == "bias":
            kinds.biases[name] = delta
        elif leaf_of(name) == "weight" and has_matrix_view(tuple(delta.shape)):
            kinds.matrices[module_of(name)] = delta
        else:
            kinds.others[name] = delta
    return kinds


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
        """Invert `encoded`; None for a file of another program, or an entry that is not what `to_one_rank` writes."""
        try:
            before = cls(**parse_json(header.get(KEY, "")))
            pairs = [*zip(before.alphas, before.ranks, strict=True)]
            wholes: list[object] = [*before.ranks, *before.matrices]
        except (ValueError, TypeError):
            return None
        texts: list[object] = [before.prefix, before.replaced]
        numbers: list[tuple[object, object]] = [*pairs]
        # a scaling of 0 cannot have been folded
        are_alphas = all(
            alpha is None or alpha == rank or (isinstance(alpha, int | float) and alpha) for alpha, rank in numbers
        )
        is_ours = all(isinstance(one, str) for one in texts) and all(isinstance(one, int) for one in wholes)
        return before if is_ours and are_alphas else None


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
    given = {**modules, **{name: module_of_matrix(name, delta) for name, delta in matrices.items()}}
    folded = {name: _folded(module) for name, module in given.items()}
    rank = max((module.rank for module in folded.values()), default=1)
    nbytes = sum(module.up.nbytes + module.down.nbytes for module in folded.values())
    padding = sum((rank - m.rank) * (m.up.nbytes + m.down.nbytes) // m.rank for m in folded.values())
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


def _padded(module: LoraModule, rank: int) -> LoraModule:
    missing = rank - module.rank
    if not missing:
        return module
    up, down = module.up, module.down
    right, below = up.new_zeros(up.shape[0], missing, *up.shape[2:]), down.new_zeros(missing, *down.shape[1:])
    return replace(module, up=torch.cat((up, right), dim=1), down=torch.cat((down, below)), alpha=float(rank))


def layer_tensors(prefix: str, layers: OneRank, biases: Mapping[ParamName, Tensor]) -> dict[str, Tensor]:
    """Return the factors of all layers by PEFT's keys.

    Args:
        biases: deltas of biases, as biases of `lora_B`: its readers then expect one for every layer, else zeros.
    """
    tensors: dict[str, Tensor] = {}
    for name, module in layers.modules.items():
        tensors |= {f"{prefix}{name}.lora_A.weight": module.down, f"{prefix}{name}.lora_B.weight": module.up}
        if biases:
            bias = biases.get(bias_of(name), module.up.new_zeros(module.up.shape[0]))
            tensors[f"{prefix}{name}.lora_B.bias"] = bias
    return tensors


def notes_of(adapter: Adapter, layers: OneRank) -> tuple[str, ...]:
    """Return what the user should know about padding and folding."""
    ranks = sorted({module.rank for module in layers.modules.values()})
    notes: list[str] = []
    if layers.padding:
        notes.append(f"Zeros fill every module up to rank {ranks[-1]}: {layers.padding / 1e6:,.1f} MB more.")
    if layers.padding is None:
        notes.append(
            f"The modules keep their ranks of {ranks[0]} to {ranks[-1]}, since filling them up to one would more than "
            "triple the file."
        )
    widened = [name for name, module in adapter.modules.items() if module.up.dtype != layers.modules[name].up.dtype]
    if widened:
        notes.append(f"lora_B of {plural(len(widened), 'module')} is in fp32: it holds their scaling, unrounded.")
    rounded = layers.before.alphas.count(None)
    if rounded:
        notes.append(f"The scaling of {plural(rounded, 'module')} changes the last bits of lora_B.")
    return tuple(notes)


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
    dense: dict[ModuleName, Tensor] = {}
    for place in before.matrices:
        module = found[names[place]] if 0 <= place < len(names) else None
        delta = None if module is None else module.factors().dense()
        if module is not None and delta is not None:  # with the identity as one factor, as it was written
            dense[module.name] = delta.to(module.down.dtype).reshape(module.shape)
    kept = {name: found[name] for name in modules if name not in dense}
    return kept, {weight_of(name): delta for name, delta in dense.items()}


def _module_before(module: LoraModule, rank: int, alpha: float | None) -> LoraModule:
    is_as_written = module.alpha == module.rank and 1 <= rank <= module.rank
    if not is_as_written or module.up[:, rank:].any() or module.down[rank:].any():
        return module
    up, down = module.up[:, :rank].contiguous(), module.down[:rank]
    if alpha is None or alpha == rank:
        return replace(module, up=up, down=down, alpha=float(rank))
    return replace(module, up=_unfolded(up, rank, alpha, down.dtype), down=down, alpha=alpha)
