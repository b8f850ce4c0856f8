"""A latent bridge pipeline with LoRAs: loaded by name, mixed, scaled, fused and unloaded, all of it live.

The methods have the names of diffusers and PEFT.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self, cast
from weakref import ref

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from lbm_lora.adapter import Adapter, LoraScale
from lbm_lora.apply import adapted_to_lbm, check_base, check_fit
from lbm_lora.checkpoint import CheckpointLike, Fingerprint, fingerprint, open_checkpoint
from lbm_lora.configs.values import AlphaIs
from lbm_lora.errors import ConfigError, plural
from lbm_lora.hub import load_adapter
from lbm_lora.model.block_scales import BlockScales, scale_of_blocks
from lbm_lora.model.bridge_pipeline import LatentBridgePipeline
from lbm_lora.model.loaded_loras import LoadedLoras, LoraState
from lbm_lora.progress import warn
from lbm_lora.regular_file import version_of

Scale = float | str | LoraScale | BlockScales
"""A LoRA's scale: one number, numbers by layer, or numbers by block as diffusers has them."""


class LoraPipeline(LatentBridgePipeline):
    """The LoRA methods of `LBMPipeline`."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        scheduler: FlowMatchEulerDiscreteScheduler,
        bridge_noise_sigma: float = 0.005,
        trained_steps: list[int] | None = None,
        base_fingerprint: str | None = None,
    ) -> None:
        super().__init__(unet, vae, scheduler, bridge_noise_sigma, trained_steps, base_fingerprint)
        held = ref(self)  # by itself it would be in a cycle, and its networks stay in memory until it is collected
        self._loras = LoadedLoras(lambda: cast(Self, held()).unet)
        self._base: CheckpointLike | None = None
        self._base_version: object = None
        self._base_found: Fingerprint | None = None

    def load_lora_weights(
        self,
        lora: Path | str | Adapter | Mapping[str, Tensor],
        adapter_name: str | None = None,
        *,
        weight_name: str | None = None,
        alpha_is: AlphaIs = "auto",
        allow_other_base: bool = False,
        allow_unmatched: bool = False,
        crop: bool = False,
    ) -> None:
        """Load a LoRA. It becomes the one that is active, with a scale of 1; `set_adapters` activates several.

        Args:
            lora: a file, `user/repo` on the hub, an adapter in memory, or a state dict: the tensors of a file by name.
            adapter_name: to call it by; by default `default_0`, `default_1` and so on.
            weight_name: the file, where `lora` is a folder or a repository.
            alpha_is: what alpha in the file means; see `load_adapter`.
            allow_other_base: accept a LoRA that was made from another base, with a warning.
            allow_unmatched: leave names aside that are not in the unet.
            crop: for a LoRA made for SDXL: apply the first columns of its attn2 keys and values, which are otherwise
                left out.

        Raises:
            HubError: it cannot be fetched from the hub.
            CheckpointError: the file cannot be read.
            AdapterError: the file is not a LoRA, or does not fit the unet.
            WrongBaseError: it was made from another base.
            ConfigError: the name is taken.
            TypeError: `lora` is something else.
        """
        given = cast(object, lora)
        if weight_name is not None and isinstance(lora, str | Path):
            lora = Path(lora) / weight_name
        elif weight_name is not None or not isinstance(given, str | Path | Adapter | Mapping):
            what = type(lora).__name__ + (" and a weight_name" if weight_name is not None else "")
            raise TypeError(
                "load_lora_weights takes the path of a file, an Adapter, a state dict, or a folder and the weight_name "
                f"of a file in it; got {what}."
            )
        state = self._loras.state
        name = adapter_name or next(
            n for i in range(len(state.loaded) + 1) if (n := f"default_{i}") not in state.loaded
        )
        base = open_checkpoint(self._loras.base_weights(), label="the pipeline's unet").component("")
        shapes = base.shapes
        read = lora if isinstance(lora, Adapter) else load_adapter(lora, alpha_is, base=base)
        adapter = adapted_to_lbm(read, shapes, crop=crop).adapter
        fit = check_fit(adapter, shapes, allow_unmatched=allow_unmatched)
        self._check_base(adapter, allow_other_base)
        self._loras.put(state.with_loaded(name, adapter.filtered(set(fit.matched).__contains__)))

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: Scale | Sequence[Scale | None] | None = None
    ) -> None:
        """Make the named LoRAs active, and no others.

        Args:
            adapter_names: one name, or several.
            adapter_weights: a scale for each, or one for all: a number; numbers by layer as a text,
                `1,down_blocks=0.5,attn1=0`; or numbers by block as diffusers has them,
                `{"down": 0.5, "up": {"block_0": [0.5, 1, 0]}}`. None is 1.

        Raises:
            ConfigError: an unknown name, or scales that do not fit.
            PatternError: a pattern matches nothing in its LoRA.
            TypeError: a scale is something else.
        """
        names = _names(adapter_names)
        if isinstance(adapter_weights, str) or not isinstance(adapter_weights, Sequence):
            given: Sequence[Scale | None] = [adapter_weights] * len(names)
        else:
            given = adapter_weights
        scales = [LoraScale() if scale is None else _scale("adapter_weights", scale) for scale in given]
        if len(scales) != len(names):
            raise ConfigError(
                f"adapter_weights has {plural(len(scales), 'value')} for {plural(len(names), 'LoRA')}. "
                "Give a number for all, or a list with one for each."
            )
        self._loras.put(self._loras.state.with_scales(names, scales))

    def get_active_adapters(self) -> list[str]:
        """Names of the LoRAs that are active."""
        return list(self._loras.state.scales)

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Names of all LoRAs that are loaded, by component."""
        loaded = list(self._loras.state.loaded)
        return {"unet": loaded} if loaded else {}

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Unload some LoRAs.

        Raises:
            ConfigError: an unknown name.
        """
        self._loras.put(self._loras.state.without(_names(adapter_names)))

    def unload_lora_weights(self) -> None:
        """Unload every LoRA: each weight is what it was, bit for bit."""
        self._loras.put(LoraState())

    def disable_lora(self) -> None:
        """Compute without the LoRAs until `enable_lora`; they stay loaded."""
        self._loras.put(replace(self._loras.state, is_enabled=False))

    def enable_lora(self) -> None:
        """Compute with the active LoRAs again."""
        self._loras.put(replace(self._loras.state, is_enabled=True))

    def fuse_lora(self, lora_scale: Scale = 1.0, adapter_names: str | Sequence[str] | None = None) -> None:
        """Add the active LoRAs to the weights, so that steps cost nothing extra. The old weights are kept.

        Args:
            lora_scale: a factor of all scales: a number, or numbers by layer; see `set_adapters`.
            adapter_names: LoRAs to make active first, with their present scales; by default those that are.

        Raises:
            ConfigError: an unknown name, or a factor that is not a scale.
            PatternError: a pattern matches nothing in an active LoRA.
            TypeError: the factor is something else.
        """
        factor = _scale("lora_scale", lora_scale)
        state = self._loras.state
        if adapter_names is not None:
            names = _names(adapter_names)
            state = state.with_scales(names, [state.scales.get(name, LoraScale()) for name in names])
        self._loras.put(replace(state, factors=(factor,), is_fused=True))

    def unfuse_lora(self) -> None:
        """Take the LoRAs out of the weights, bit for bit, and compute them next to them again."""
        self._loras.put(replace(self._loras.state, factors=(), is_fused=False))

    @contextmanager
    def lora_scale(self, scale: Scale) -> Generator[Self, None, None]:
        """Multiply the scale of every LoRA within a `with` block; 0 is the base, bit for bit.

        Args:
            scale: a number, or numbers by layer; see `set_adapters`.

        Raises:
            ConfigError: it is not a scale.
            PatternError: a pattern matches nothing in an active LoRA.
            TypeError: it is something else.
        """
        factor = _scale("scale", scale)
        before = self._loras.state.factors
        self._loras.put(replace(self._loras.state, factors=(*before, factor)))
        try:
            yield self
        finally:
            self._loras.put(replace(self._loras.state, factors=before))

    def _check_base(self, adapter: Adapter, allow_other_base: bool) -> None:
        if adapter.metadata.base_fingerprint and adapter.metadata.base_fingerprint == self.config["base_fingerprint"]:
            return
        if self._base is None or self._is_replaced():
            warn(f"{adapter.path}: this pipeline does not know the file of its base, so they cannot be compared.")
            return
        with open_checkpoint(self._base) as checkpoint:
            component = checkpoint.component()
            if adapter.metadata.base_fingerprint:
                self._base_found = self._base_found or fingerprint(component)
            check_base(adapter, component, allow_other_base=allow_other_base, found=self._base_found)

    def _is_replaced(self) -> bool:
        """Return whether the file of the base is another one by now: it says nothing about this pipeline's weights."""
        return isinstance(self._base, Path) and versions(self._base) != self._base_version

    def _base_digest(self) -> str | None:
        """The fingerprint of the checkpoint that the weights came from."""
        if self.config["base_fingerprint"] is None and self._base is not None and not self._is_replaced():
            with open_checkpoint(self._base) as checkpoint:
                self._base_found = self._base_found or fingerprint(checkpoint.component())
            return self._base_found.digest
        return self.config["base_fingerprint"]


def versions(base: Path) -> object:
    """Return what tells one content of a file, or of the files in a folder, from the next."""
    return [version_of(one) for one in sorted(base.iterdir())] if base.is_dir() else version_of(base)


def _names(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _scale(name: str, value: object) -> LoraScale:
    if isinstance(value, LoraScale | int | float | str):
        return LoraScale.parse(value)
    if isinstance(value, Mapping):
        return scale_of_blocks(cast(BlockScales, value))
    raise TypeError(f"{name} must be a number, or numbers by layer such as '1,attn1=0', got {value!r}.")
