"""The interface of a foreign format: how its keys are recognised, read and written.

Foreign words live in the modules next to this one, one per family of formats. In between everything is an `Adapter`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from lbm_lora.adapter.metadata import AdapterMetadata
from lbm_lora.adapter.module import Adapter, LoraModule
from lbm_lora.checkpoint import Component
from lbm_lora.choices import BiasesAs, ForeignFormat, FormatName, NormsAs
from lbm_lora.errors import AdapterError, Option, listing, plural
from lbm_lora.naming import DENOISER_PREFIX, ModuleName, ParamName


@dataclass(frozen=True)
class Source:
    """A file, or state dict, of a foreign format: its tensors by their own keys, and the strings of its header.

    Attributes:
        path: the file, or the folder that holds it: also for the files next to it (`adapter_config.json`).
        base: the component that it is meant for, where it is at hand: values that replace the base's become deltas.
    """

    tensors: Mapping[str, Tensor]
    header: Mapping[str, str]
    path: Path
    base: Component | None = None

    @property
    def prefix(self) -> str:
        """Prefix of the component, for formats whose keys do not say it."""
        return DENOISER_PREFIX if self.base is None else self.base.prefix

    def adapter(
        self,
        modules: Mapping[ModuleName, LoraModule],
        dense: Mapping[ParamName, Tensor],
        prefix: str,
        own_header: Collection[str] = (),
    ) -> Adapter:
        """Return the contents as an adapter; `own_header` are the entries of the header that are the format's own."""
        header = {key: value for key, value in self.header.items() if key not in own_header}
        return Adapter(modules, dense, AdapterMetadata.from_header(header), prefix)


Decoded = tuple[Adapter, Sequence[str]]
"""An adapter, complete, and what the user should know, one sentence each, such as what was rebuilt or left out."""


@dataclass(frozen=True)
class Wishes:
    """The user's choices for deltas that a format cannot hold. `replace` needs the values of the base."""

    biases: BiasesAs = "keep"
    norms: NormsAs = "keep"
    base: Component | None = None


WISHES: Mapping[ForeignFormat, Wishes] = {
    "comfyui": Wishes(),
    "kohya": Wishes(biases="drop", norms="drop"),
    "kohya-diffusers": Wishes(biases="drop", norms="drop"),
    "diffusers": Wishes(biases="lora_bias", norms="drop"),
    "peft": Wishes(biases="lora_bias", norms="drop"),
    "lycoris": Wishes(biases="drop"),
}
"""Wishes with which each format holds all that it can without the base at hand."""


@dataclass(frozen=True)
class Encoded:
    """An adapter in a foreign format.

    Attributes:
        header: strings for the `.safetensors` header, on top of the adapter's own metadata.
        config: contents of the `adapter_config.json` next to the file, for a format that has one.
    """

    tensors: Mapping[str, Tensor]
    header: Mapping[str, str] = field(default_factory=dict[str, str])
    config: Mapping[str, object] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Saved:
    """Outcome of writing an adapter: its file or folder, the params left out, and what the user should know."""

    path: Path
    dropped: tuple[ParamName, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Codec:
    """A foreign format: how its keys are recognised, and its files read and written.

    `encode` raises AdapterError for what the format cannot hold and the wishes do not settle, counted and named, with
    the options that settle it.
    """

    name: FormatName
    matches: Callable[[Collection[str], Mapping[str, str]], bool]
    decode: Callable[[Source], Decoded]
    encode: Callable[[Adapter, Wishes], Encoded]


def only_deltas(wishes: Wishes, format: str) -> None:
    """Check that the wishes ask for nothing but deltas, for a format that has nothing else."""
    for name, value in (("biases", wishes.biases), ("norms", wishes.norms)):
        if value not in ("keep", "drop"):
            raise AdapterError(
                f"the format {format} holds deltas only, not ", Option(name, value), ". Use keep or drop."
            )


def check_held(
    adapter: Adapter,
    format: FormatName,
    remedies: Mapping[str, str],
    *,
    biases: Collection[ParamName],
    norms: Collection[ParamName],
    others: Collection[ParamName],
    lead: str = "Choose: ",
) -> None:
    """Refuse deltas that the format cannot hold, counted and named, with the options that settle them.

    Args:
        remedies: for `biases` and `norms`: the option's values that would help.
    """
    if not (biases or norms or others):
        return
    kinds = [(biases, "delta of a bias", "deltas of biases"), (norms, "delta of a norm", "deltas of norms")]
    kinds.append((others, "delta of another parameter", "deltas of other parameters"))
    counts = " and ".join(plural(len(names), one, several) for names, one, several in kinds if names)
    shown = listing([*biases, *norms, *others], limit=3)
    what = f"{adapter.label}: the format {format} cannot hold {counts}: {shown}. "
    if others:
        raise AdapterError(what, "Write it as native.")
    parts: list[str | Option] = []
    for name, names in (("biases", biases), ("norms", norms)):
        if names:
            parts += [", " if parts else lead, Option(name, remedies[name])]
    raise AdapterError(what, *parts, ".")
