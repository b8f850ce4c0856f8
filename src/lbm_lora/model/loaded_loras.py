"""LoRAs loaded into a live network, each under a name, and the way they act.

What is loaded is a value. Each change of it takes everything out of the network, bit for bit, and puts the new state
in; so scales, sets of LoRAs and the way they are computed can change at any time, and nothing adds up.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches

from torch import Tensor, nn

from lbm_lora.adapter import Adapter, LoraScale
from lbm_lora.apply import Fused, Injection, ScaledAdapter, fuse_module, inject, scales_for
from lbm_lora.errors import ConfigError, Option, listing
from lbm_lora.naming import ParamName

BlockScales = Mapping[str, object]
"""Scales by block as diffusers has them: `{"down": 0.5, "mid": 1, "up": {"block_0": 0.6, "block_1": [0.4, 0.8, 1]}}`.

A number holds for a block with all of its layers. A list has a number for each layer of a block: that of
`up_blocks.1.attentions.2`, its resnet `up_blocks.1.resnets.2` included. Whatever is not named keeps a scale of 1. An
outer `{"unet": ...}` is taken off.
"""

_FORM = (
    'Give {"down": 0.5, "mid": 1, "up": {"block_0": 0.6, "block_1": [0.4, 0.8, 1]}}, or a text such as '
    "'1,down_blocks=0.5,attn1=0'."
)
_SIDES = {"down": "down_blocks", "up": "up_blocks"}


@dataclass(frozen=True)
class LoraState:
    """State of the loaded LoRAs.

    Attributes:
        loaded: LoRAs by name.
        scales: `lora_scale` by name, for the active LoRAs.
        factors: factors on all scales.
        is_enabled: if off, the network computes as if none was loaded.
        is_fused: whether they are added to the weights instead of computed next to them.
    """

    loaded: Mapping[str, Adapter] = field(default_factory=dict)
    scales: Mapping[str, LoraScale] = field(default_factory=dict[str, LoraScale])
    factors: tuple[LoraScale, ...] = ()
    is_enabled: bool = True
    is_fused: bool = False

    @property
    def acting(self) -> list[ScaledAdapter]:
        """What the network is to compute with."""
        if not self.is_enabled:
            return []
        return [ScaledAdapter(self.loaded[name], self._by_param(name)) for name in self.scales]

    def _by_param(self, name: str) -> dict[ParamName, float]:
        adapter = self.loaded[name]
        scales, *factors = [ScaledAdapter(adapter, scale).scales for scale in (self.scales[name], *self.factors)]
        return {param: scale * math.prod(each[param] for each in factors) for param, scale in scales.items()}

    def described(self, name: str) -> str:
        """The name and the scale of an active LoRA: `relight 0.5`, `relight 1,attn1=0 x 0.5`."""
        every = (self.scales[name], *self.factors)
        if all(scale.is_uniform for scale in every):
            return f"{name} {math.prod(scale.default for scale in every):g}"
        return f"{name} {' x '.join(scale.text for scale in every)}"

    def with_loaded(self, name: str, adapter: Adapter) -> "LoraState":
        """Return the state with another LoRA, which alone is active."""
        if name in self.loaded:
            raise ConfigError(
                f"a LoRA named '{name}' is already loaded. Give another adapter_name, or delete it first."
            )
        return replace(self, loaded={**self.loaded, name: adapter}, scales={name: LoraScale()})

    def without(self, names: Iterable[str]) -> "LoraState":
        """Return the state without some LoRAs."""
        gone = self.known(names)
        kept = {name: adapter for name, adapter in self.loaded.items() if name not in gone}
        return replace(self, loaded=kept, scales={name: s for name, s in self.scales.items() if name in kept})

    def with_scales(self, names: Sequence[str], scales: Sequence[float | str | LoraScale]) -> "LoraState":
        """Return the state with only the named LoRAs active, with one scale for each, or one for all."""
        self.known(names)
        return replace(self, scales=dict(zip(names, scales_for(len(names), scales), strict=True)))

    def known(self, names: Iterable[str]) -> set[str]:
        """The names, each of which is loaded."""
        for name in names:
            if name not in self.loaded:
                near = get_close_matches(name, self.loaded, n=1)
                hint = f"Did you mean '{near[0]}'?" if near else f"Loaded: {listing(self.loaded) or 'none'}."
                raise ConfigError(f"no LoRA named '{name}' is loaded. {hint}")
        return set(names)


class LoadedLoras:
    """Loaded LoRAs, and those currently applied.

    Args:
        network: gives the network, which may be wrapped by torch.compile.
    """

    def __init__(self, network: Callable[[], nn.Module]) -> None:
        self.state = LoraState()
        self._network = network
        self._inside: Injection | Fused | None = None

    def put(self, state: LoraState) -> None:
        """Make the network compute with a state; if that fails, nothing changes."""
        before = self.state
        self.take_out()
        try:
            self._put_in(state)
        except BaseException:
            self._put_in(before)
            raise

    def take_out(self) -> None:
        """Put back every weight, bit for bit. The state stays: `put(state)` brings it back."""
        if self._inside is not None:
            _refuse_offloaded(self._network())
            self._inside.eject() if isinstance(self._inside, Injection) else self._inside.unfuse()
            self._inside = None

    def base_weights(self) -> dict[str, Tensor]:
        """The network's weights by name, as they are without LoRAs."""
        network = self._network()
        _refuse_offloaded(network)
        weights: dict[str, Tensor] = dict(getattr(network, "_orig_mod", network).state_dict())
        inside = self._inside.fused if isinstance(self._inside, Injection) else self._inside
        return weights if inside is None else {**weights, **inside.saved}

    def refresh_for_compiled(self) -> None:
        """Fuse what is computed by hooks where the network has been compiled since: compiled code skips them."""
        if isinstance(self._inside, Injection) and _is_compiled(self._network()):
            self.put(self.state)

    def _put_in(self, state: LoraState) -> None:
        network, acting = self._network(), state.acting
        if acting:
            _refuse_offloaded(network)
            plain = getattr(network, "_orig_mod", network)
            self._inside = (fuse_module if state.is_fused or _is_compiled(network) else inject)(plain, acting)
        self.state = state


def _is_compiled(network: nn.Module) -> bool:
    return hasattr(network, "_orig_mod") or getattr(network, "_compiled_call_impl", None) is not None


def _refuse_offloaded(network: nn.Module) -> None:
    if any(parameter.is_meta for parameter in network.parameters()):
        raise ConfigError(
            "the weights of the unet are offloaded one by one, and cannot be changed. Load and scale LoRAs before "
            "enable_sequential_cpu_offload, or use enable_model_cpu_offload."
        )


def scale_of_blocks(scales: BlockScales) -> LoraScale:
    """Return scales by block as a scale by layer."""
    inner = scales.get("unet")
    if len(scales) == 1 and isinstance(inner, Mapping):
        return scale_of_blocks(inner)
    if len(scales) == 1 and isinstance(inner, int | float):
        return LoraScale.parse(inner)
    return LoraScale(parts=tuple(part for name, value in scales.items() for part in _of_side(name, value)))


def _of_side(name: str, value: object) -> Iterator[tuple[str, float]]:
    if name == "mid":
        yield "mid_block.", _number(value[0] if isinstance(value, Sequence) and len(value) == 1 else value)
    elif name not in _SIDES:
        raise ConfigError(Option("adapter_weights"), f": '{name}' is not a block. {_FORM}")
    elif isinstance(value, Mapping):
        for block, scale in value.items():
            yield from _of_block(_SIDES[name], str(block), scale)
    else:
        yield f"{_SIDES[name]}.", _number(value)


def _of_block(side: str, block: str, value: object) -> Iterator[tuple[str, float]]:
    found = re.fullmatch(r"block_(\d+)", block)
    if found is None:
        raise ConfigError(Option("adapter_weights"), f": '{block}' is not a block. {_FORM}")
    if isinstance(value, Sequence) and not isinstance(value, str):
        for layer, scale in enumerate(value):
            yield rf"re:^{side}\.{found[1]}\.\w+\.{layer}\.", _number(scale)
    else:
        yield f"{side}.{found[1]}.", _number(value)


def _number(value: object) -> float:
    if isinstance(value, int | float):
        return LoraScale.parse(value).default
    raise ConfigError(Option("adapter_weights"), f": {value!r} is not a number. {_FORM}")
