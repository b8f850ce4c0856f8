"""`LBMPipeline`: the diffusers pipeline of an LBM checkpoint, with LoRAs loaded, mixed, scaled and unloaded live."""

import logging
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self, cast
from weakref import ref

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from lbm_lora.adapter import Adapter, LoraScale
from lbm_lora.apply import adapted_to_lbm, check_base, check_fit
from lbm_lora.checkpoint import Checkpoint, CheckpointLike, Fingerprint, dtype_of, fingerprint, open_checkpoint
from lbm_lora.choices import AlphaIs
from lbm_lora.errors import ConfigError, ImageError, Option, plural
from lbm_lora.files import is_same
from lbm_lora.hub import load_adapter, local_checkpoint
from lbm_lora.model.bridge_pipeline import LatentBridgePipeline
from lbm_lora.model.build import LBMModel, load_model
from lbm_lora.model.device import resolve_device
from lbm_lora.model.loaded_loras import BlockScales, LoadedLoras, LoraState, scale_of_blocks
from lbm_lora.model.schedule import check_step_count, step_counts
from lbm_lora.progress import warn

Scale = float | str | LoraScale | BlockScales
"""A LoRA's scale: one number, numbers by layer, or numbers by block as diffusers has them."""

_UNET = "unet"  # the folder of the denoiser, in a model's folder
_NO_PROMPT = "LBM takes no prompt: the image alone decides."


class LBMPipeline(LatentBridgePipeline):
    """An LBM that translates images, with any number of LoRAs.

    From an LBM checkpoint: `from_checkpoint`; from a folder that `save_pretrained` has written: `from_pretrained`. How
    images are translated: `LatentBridgePipeline.__call__`. The methods for LoRAs have the names of diffusers and PEFT.
    LoRAs are computed next to the weights, or added to them (`fuse_lora`, and always where the unet is compiled);
    biases and norms are always added. Either way the weights come back bit for bit.
    """

    _elsewhere: ClassVar[Mapping[str, str]] = {
        "prompt": _NO_PROMPT,
        "negative_prompt": _NO_PROMPT,
        "guidance_scale": "LBM takes no prompt, so nothing is guided. `with pipe.lora_scale(0.5):` weakens a LoRA.",
        "strength": "LBM takes no strength. `with pipe.lora_scale(0.5):` weakens a LoRA.",
        "mask_image": "Give the mask as mask=.",
        "cross_attention_kwargs": "Scale LoRAs by set_adapters, or `with pipe.lora_scale(0.5):`.",
    }
    _base: CheckpointLike | None = None
    _base_found: Fingerprint | None = None

    @cached_property
    def _loras(self) -> LoadedLoras:
        held = ref(self)  # by itself it would be in a cycle, and its networks stay in memory until it is collected
        return LoadedLoras(lambda: cast(Self, held()).unet)

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: CheckpointLike,
        *,
        config_path: Path | str | None = None,
        device: torch.device | str = "cpu",
        torch_dtype: torch.dtype | str = torch.bfloat16,
    ) -> "LBMPipeline":
        """The pipeline of an LBM checkpoint: the exact base, or a tuned one.

        Args:
            checkpoint: a path, `user/repo` on the hub, an open checkpoint, or a state dict; see `open_checkpoint`.
            config_path: a config.yaml for a checkpoint that has none of its own.
            device: `cuda` where there is no CUDA gives a warning, and the CPU.
            torch_dtype: of the unet: a dtype, or `float`, `fp16` or `bf16`. The VAE stays fp32 where it would overflow.
        """
        dtype = dtype_of(torch_dtype) if isinstance(torch_dtype, str) else torch_dtype
        checkpoint = local_checkpoint(checkpoint) if isinstance(checkpoint, str | Path) else checkpoint
        pipe = cls.from_model(load_model(checkpoint, config_path=config_path, device=device, dtype=dtype))
        # an open checkpoint may be closed by its owner: keep a view of our own
        pipe._base = open_checkpoint(checkpoint) if isinstance(checkpoint, Checkpoint) else checkpoint
        return pipe

    @classmethod
    def from_model(cls, model: LBMModel) -> "LBMPipeline":
        """A pipeline over the networks of a model that is loaded already. It does not know the file of its base."""
        steps = step_counts(model.config)
        return cls(
            model.denoiser,
            model.vae,
            FlowMatchEulerDiscreteScheduler(),
            bridge_noise_sigma=model.config.bridge_noise_sigma,
            trained_steps=None if steps is None else list(steps),
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike[str], **kwargs: Any) -> "LBMPipeline":
        """The pipeline of a folder that `save_pretrained` has written, or of such a repository; see diffusers."""
        pipe = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        folder = Path(pretrained_model_name_or_path) / _UNET
        if "unet" in kwargs:  # not the weights of the folder
            pipe.register_to_config(base_fingerprint=None)
        elif folder.is_dir():
            pipe._base = folder
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> "LBMPipeline":
        """A pipeline with the networks of another one; see diffusers. It has the same base."""
        pipe = cast("LBMPipeline", super().from_pipe(pipeline, **kwargs))
        if isinstance(pipeline, LBMPipeline):
            pipe._base = pipeline._base
        return pipe

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """The configuration of a folder. It names the class in the folder's own file, and this one takes its place."""
        found: Any = super().load_config(*args, **kwargs)
        (found[0] if isinstance(found, tuple) else found)["_class_name"] = cls.__name__
        return found

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write a folder in the layout of diffusers, with the code that runs it without lbm-lora.

        LoRAs that are fused are part of the weights that are written; they can be unfused here, not from the folder.

        Args:
            save_directory: the folder, other than the one that the pipeline was loaded from.
            args, kwargs: see diffusers.
        """
        if any(is_same(home, Path(save_directory)) for home in self._homes()):
            raise ConfigError(
                f"{save_directory} is the model that this pipeline was loaded from, and would be overwritten. Choose "
                "another folder."
            )
        state = self._loras.state
        if state.acting and not state.is_fused:
            raise ConfigError(
                "LoRAs are loaded that the folder would not hold. Call fuse_lora() to save the model with them in its "
                "weights, or unload_lora_weights() to save it without."
            )
        self.register_to_config(base_fingerprint=None if state.acting else self._base_digest())
        super().save_pretrained(save_directory, *args, **kwargs)

    def _homes(self) -> list[Path]:
        """Return the folders that the networks may be from; diffusers hands on that of a pipeline of another class."""
        loaded_from = self.config.get("_name_or_path")
        base = self._base if isinstance(self._base, Path) and self._base.is_dir() else None
        homes = [] if base is None else [base.parent if base.name == _UNET else base]
        return [*homes, Path(loaded_from)] if loaded_from else homes

    def to(self, *args: Any, **kwargs: Any) -> "LBMPipeline":
        """Move or cast the networks; see diffusers. LoRAs that are loaded go along.

        A device that this machine lacks gives a warning, and the CPU.
        """
        state = self._loras.state
        self._loras.take_out()
        said = logging.getLogger("diffusers.models.modeling_utils")
        said.addFilter(_says_something)
        try:
            return super().to(*map(_reachable, args), **{key: _reachable(value) for key, value in kwargs.items()})
        finally:
            said.removeFilter(_says_something)
            self._loras.put(state)

    def __repr__(self) -> str:
        """That of diffusers, and the active LoRAs with their scales."""
        state = self._loras.state
        active = ", ".join(map(state.described, state.scales))
        off = "" if state.is_enabled else " (disabled)"
        return f"{super().__repr__()}\nLoRAs: {active or 'none'}{off}"

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
        """Unload some LoRAs."""
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
        """
        factor = _scale("scale", scale)
        before = self._loras.state.factors
        self._loras.put(replace(self._loras.state, factors=(*before, factor)))
        try:
            yield self
        finally:
            self._loras.put(replace(self._loras.state, factors=before))

    def _prepare(self) -> None:
        super()._prepare()
        self._loras.refresh_for_compiled()

    def bucket(self, width: int, height: int, size: int | None = None) -> tuple[int, int]:
        """The (width, height) that an image is stretched to before it is translated."""
        try:
            return super().bucket(width, height, size)
        except ValueError:
            raise ConfigError(f"size {size} is too small for the buckets. Use 64 or more.") from None

    def check_steps(self, steps: int) -> None:
        """Warn of a number of steps that leaves the trained timesteps."""
        check_step_count(steps, self.config["trained_steps"], what="num_inference_steps")

    def check_finite(self, values: Tensor, what: str) -> None:
        """Refuse NaN and infinite values; see `check_finite`."""
        check_finite(values, self.unet.dtype, what=what)

    def _check_base(self, adapter: Adapter, allow_other_base: bool) -> None:
        if adapter.metadata.base_fingerprint and adapter.metadata.base_fingerprint == self.config["base_fingerprint"]:
            return
        if self._base is None:
            warn(f"{adapter.path}: this pipeline does not know the file of its base, so they cannot be compared.")
            return
        with open_checkpoint(self._base) as checkpoint:
            component = checkpoint.component()
            if adapter.metadata.base_fingerprint:
                self._base_found = self._base_found or fingerprint(component)
            check_base(adapter, component, allow_other_base=allow_other_base, found=self._base_found)

    def _base_digest(self) -> str | None:
        if self.config["base_fingerprint"] is None and self._base is not None:
            with open_checkpoint(self._base) as checkpoint:
                self._base_found = self._base_found or fingerprint(checkpoint.component())
            return self._base_found.digest
        return self.config["base_fingerprint"]


def _names(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _scale(name: str, value: object) -> LoraScale:
    if isinstance(value, LoraScale | int | float | str):
        return LoraScale.parse(value)
    if isinstance(value, Mapping):
        return scale_of_blocks(cast(BlockScales, value))
    raise TypeError(f"{name} must be a number, or numbers by layer such as '1,attn1=0', got {value!r}.")


def _reachable(value: object) -> object:
    is_device = isinstance(value, torch.device) or (isinstance(value, str) and re.match("cuda|mps", value))
    return resolve_device(str(value)) if is_device and str(value) != "meta" else value


def _says_something(record: logging.LogRecord) -> bool:
    """Whether it is not diffusers' warning that the modules of an empty list are not kept in fp32."""
    return "kept in float32: []" not in record.getMessage()


def check_finite(images: Tensor, dtype: torch.dtype, *, what: str) -> None:
    """Refuse NaN and infinite images, with the likely reason.

    Args:
        dtype: that the networks ran in.
        what: the name of `images` in the error.
    """
    broken = int((~torch.isfinite(images)).sum())
    if not broken:
        return
    found = f"{what} holds {broken} non-finite values of {images.numel()}. "
    if dtype == torch.float16:
        raise ImageError(
            found, "fp16 ends at 65504, which the networks can leave: use ", Option("torch_dtype"), " bf16 or float."
        )
    raise ImageError(
        f"{found}{'bf16' if dtype == torch.bfloat16 else 'fp32'} has room enough: a weight of the model or of a LoRA "
        "is not finite, or a LoRA is scaled far too much (",
        Option("lora_scale"),
        ", ",
        Option("lora_alpha_is"),
        ").",
    )
