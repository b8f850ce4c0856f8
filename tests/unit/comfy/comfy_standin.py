# pyright: reportUnknownMemberType=false
"""A stand-in for what our nodes use of ComfyUI: modules of its names, written for the tests, small and strict.

Inputs take only the arguments that ComfyUI's have. A MODEL computes with its patches by adding them to the weights and
putting those back. The real ComfyUI is driven by tests/comfy.
"""

import copy
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[..., tuple[Any, ...]]
"""Runs a node: `run("LbmLoraOpenLora", lora="a.safetensors")` gives its outputs."""

_WIDGET = {"display_name", "optional", "tooltip", "lazy", "default", "socketless", "force_input"}
_NUMBER = _WIDGET | {"min", "max", "step", "display_mode", "control_after_generate", "round"}
_SOCKET = {"display_name", "optional", "tooltip", "lazy"}


@dataclass
class Socket:
    """An input or output of a schema."""

    id: str
    io_type: str
    settings: Mapping[str, Any]


def _kind(name: str, allowed: set[str]) -> type:
    def declared(id: str, **settings: Any) -> Socket:
        strange = settings.keys() - allowed
        if strange:
            raise TypeError(f"an input of {name} has no argument {sorted(strange)}")
        return Socket(id, name, settings)

    def output(id: str = "", display_name: str = "", **settings: Any) -> Socket:
        return Socket(id or display_name, name, settings)

    return type(name, (), {"Input": staticmethod(declared), "Output": staticmethod(output), "io_type": name})


class _MultiType:
    @staticmethod
    def Input(id: str, types: Sequence[Any], **settings: Any) -> Socket:
        return Socket(id, ",".join(one.io_type for one in types), settings)


@dataclass(kw_only=True)
class Schema:
    node_id: str
    display_name: str
    category: str
    description: str
    inputs: Sequence[Socket]
    outputs: Sequence[Socket]
    is_output_node: bool = False
    not_idempotent: bool = False


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None) -> None:
        self.args, self.ui = args, ui


class ComfyNode:
    """Base of a node class."""


class ComfyExtension:
    """Base of an extension."""


class _Layer:
    """What ComfyUI's layers have on top of torch's."""

    comfy_cast_weights = False


def layers() -> SimpleNamespace:
    classes = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)
    return SimpleNamespace(**{one.__name__: type(one.__name__, (one, _Layer), {}) for one in classes})


class Interrupted(Exception):
    """What ComfyUI raises at Cancel."""


@dataclass
class State:
    """What the tests read and set of the running ComfyUI."""

    root: Path
    interrupted: bool = False
    ticks: list[int] = field(default_factory=list[int])
    previews: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])

    def check(self) -> None:
        if self.interrupted:
            raise Interrupted


class BaseModel(nn.Module):
    def __init__(self, settings: Any, model_type: str) -> None:
        super().__init__()
        self.latent_format, self.manual_cast_dtype, self.model_type = (
            settings.latent_format,
            settings.manual_cast_dtype,
            model_type,
        )
        self.model_sampling: Any = None
        self.diffusion_model: Any = None

    def apply_model(self, latents: Tensor, sigma: Tensor) -> Tensor:
        dtype = self.manual_cast_dtype or self.diffusion_model.dtype
        output = self.diffusion_model(latents.to(dtype), (1000 * sigma).float(), context=None, transformer_options={})
        return latents - output.float() * sigma[:, None, None, None]

    def process_latent_in(self, latent: Tensor) -> Tensor:
        return latent * self.latent_format.scale_factor


class ModelPatcher:
    def __init__(self, model: nn.Module, load_device: Any, offload_device: Any) -> None:
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
        self.patches: dict[str, list[tuple[float, Callable[[], Tensor]]]] = {}
        self.attachments: dict[str, Any] = {}

    def clone(self) -> "ModelPatcher":
        made = ModelPatcher(self.model, self.load_device, self.offload_device)
        made.patches = {key: list(patches) for key, patches in self.patches.items()}
        made.attachments = dict(self.attachments)
        return made

    def set_attachments(self, key: str, value: Any) -> None:
        self.attachments[key] = value

    def add_patches(self, patches: Mapping[str, Callable[[], Tensor]], strength: float) -> list[str]:
        known = self.model.state_dict().keys() & patches.keys()
        for key in known:
            self.patches.setdefault(key, []).append((strength, patches[key]))
        return list(known)

    def model_dtype(self) -> torch.dtype:
        return self.model.diffusion_model.dtype  # pyright: ignore[reportReturnType, reportAttributeAccessIssue]

    @contextmanager
    def patched(self) -> Generator[None]:
        named = dict(self.model.named_parameters())
        kept = {key: named[key].data for key in self.patches}
        for key, patches in self.patches.items():
            deltas = [strength * delta().reshape(kept[key].shape) for strength, delta in patches]
            named[key].data = kept[key] + sum(deltas).to(kept[key].dtype)  # pyright: ignore[reportAttributeAccessIssue]
        try:
            yield
        finally:
            for key, value in kept.items():
                named[key].data = value


def load_lora(tensors: Mapping[str, Tensor], keys: Mapping[str, str]) -> dict[str, Callable[[], Tensor]]:
    """Deltas by key of the model, of names as the format comfyui has them."""
    found: dict[str, Callable[[], Tensor]] = {}
    for name, key in keys.items():
        up, down = tensors.get(f"{name}.lora_up.weight"), tensors.get(f"{name}.lora_down.weight")
        if up is not None and down is not None:
            scaling = float(tensors[f"{name}.alpha"]) / down.shape[0]
            found[key] = lambda up=up, down=down, s=scaling: s * up.float().flatten(1) @ down.float().flatten(1)
        for ending, target in ((".diff", key), (".diff_b", key.removesuffix(".weight") + ".bias")):
            if name + ending in tensors:
                found[target] = tensors[name + ending].float
    return found


class CFGGuider:
    def __init__(self, model: ModelPatcher) -> None:
        self.model, self.conds, self.cfg = model, dict[str, Any](), 0.0

    def inner_set_conds(self, conds: dict[str, Any]) -> None:
        self.conds = conds

    def set_cfg(self, cfg: float) -> None:
        self.cfg = cfg

    def sample(self, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, disable_pbar: bool = False) -> Tensor:
        assert self.conds == {"positive": [[None, {}]]}
        assert self.cfg == 1.0
        model: Any = self.model.model
        start = model.model_sampling.noise_scaling(sigmas[0], noise, latent, False)

        def denoised(latents: Tensor, sigma: Tensor, *, model_options: Any) -> Tensor:
            return model.apply_model(latents, sigma)

        with self.model.patched():
            made = sampler.function(
                denoised, start, sigmas, extra_args={"model_options": {}}, callback=None, disable=True
            )
        return made / model.latent_format.scale_factor


class VAE:
    """The part of the stock VAE object that is used: batches of images in [0, 1] to latents and back."""

    def __init__(self, sd: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
        assert sd
        assert config
        self.vae_dtype, self.device = torch.float32, torch.device("cpu")
        self.first_stage_model: Any = None
        self.patcher: Any = None
        self.latent_channels, self.downscale_ratio, self.upscale_ratio, self.size = 0, 0, 0, 1

    def encode(self, images: Tensor) -> Tensor:
        return self.first_stage_model.encode(images.movedim(-1, 1) * 2 - 1)

    def decode(self, latents: Tensor) -> Tensor:
        return ((self.first_stage_model.decode(latents) + 1) / 2).clamp(0, 1).movedim(1, -1)


class StockAutoencoder(nn.Module):
    def __init__(self, ddconfig: Mapping[str, Any], embed_dim: int) -> None:
        super().__init__()
        self.only = nn.Linear(embed_dim, ddconfig["ch"])


class Flow:
    def __init__(self, settings: Any) -> None: ...


class Const:
    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False) -> Tensor:
        return sigma * noise + (1 - sigma) * latent_image


class Base:
    """Settings of a model."""

    def __init__(self, unet_config: Mapping[str, Any]) -> None:
        assert unet_config["disable_unet_model_creation"]
        self.latent_format, self.manual_cast_dtype = None, None


def modules(state: State) -> dict[str, ModuleType]:
    """Module name -> stand-in."""

    class ProgressBar:
        def __init__(self, total: int) -> None:
            state.ticks.append(total)

        def update(self, n: int) -> None:
            state.check()
            state.ticks.append(n)

    def names(kind: str) -> list[str]:
        return sorted(path.name for path in (state.root / kind).glob("*.safetensors"))

    def preview(model: Any, total: int) -> Callable[..., None]:
        def after(step: int, guess: Tensor, latents: Tensor, steps: int) -> None:
            assert guess.shape == latents.shape
            state.previews.append((step, steps))

        return after

    def cast(weights: torch.dtype, device: Any, dtypes: Any) -> torch.dtype | None:
        return None if weights == torch.float32 else torch.float32

    sockets = ("Image", "Mask", "Model", "Vae")
    kinds = {name: _kind(name.upper(), _SOCKET) for name in sockets}
    kinds |= {name: _kind(name.upper(), _NUMBER | {"options", "multiline", "placeholder"}) for name in ("Int", "Float")}
    kinds |= {name: _kind(name.upper(), _WIDGET | {"options", "multiline"}) for name in ("String", "Combo")}
    io = SimpleNamespace(
        **kinds,
        Custom=lambda name: _kind(name, _SOCKET),  # pyright: ignore[reportUnknownLambdaType]
        MultiType=_MultiType, Schema=Schema, NodeOutput=NodeOutput, ComfyNode=ComfyNode,
    )  # fmt: skip
    ui = SimpleNamespace(PreviewText=lambda text: {"text": text})  # pyright: ignore[reportUnknownLambdaType]
    cpu = torch.device("cpu")
    contents: dict[str, dict[str, Any]] = {
        "comfy_api": {},
        "comfy_api.v0_0_2": {"io": io, "ui": ui, "ComfyExtension": ComfyExtension},
        "folder_paths": {
            "get_filename_list": names,
            "get_full_path_or_raise": lambda kind, name: str(state.root / kind / name),
            "get_output_directory": lambda: str(state.root / "output"),
        },
        "latent_preview": {"prepare_callback": preview},
        "comfy": {},
        "comfy.lora": {"load_lora": load_lora},
        "comfy.utils": {"ProgressBar": ProgressBar},
        "comfy.model_management": {
            "get_torch_device": lambda: cpu,
            "unet_offload_device": lambda: cpu,
            "vae_offload_device": lambda: cpu,
            "unet_manual_cast": cast,
            "unet_dtype": lambda device, model_params, supported_dtypes, weight_dtype: torch.float32,
            "throw_exception_if_processing_interrupted": state.check,
        },
        "comfy.model_base": {"BaseModel": BaseModel, "ModelType": SimpleNamespace(FLOW="flow")},
        "comfy.model_patcher": {"ModelPatcher": ModelPatcher},
        "comfy.model_sampling": {"ModelSamplingDiscreteFlow": Flow, "CONST": Const},
        "comfy.latent_formats": {"SDXL": lambda: SimpleNamespace(scale_factor=0.13025)},
        "comfy.supported_models_base": {"BASE": Base},
        "comfy.ops": {"pick_operations": lambda dtype, cast: layers(), "disable_weight_init": layers()},
        "comfy.samplers": {"CFGGuider": CFGGuider, "KSAMPLER": lambda function: SimpleNamespace(function=function)},
        "comfy.sd": {"VAE": VAE},
        "comfy.ldm": {}, "comfy.ldm.models": {}, "comfy.ldm.models.autoencoder": {"AutoencoderKL": StockAutoencoder},
    }  # fmt: skip
    found: dict[str, ModuleType] = {}
    for name, values in contents.items():
        found[name] = ModuleType(name)
        vars(found[name]).update(copy.copy(values))
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(found[parent], own, found[name])
    return found


NODE_MODULES = ("lbm_lora.comfy.extension",)
"""Ours that import `comfy_api`: they are imported anew for each stand-in."""


def install(state: State) -> Callable[[], None]:
    """Put the stand-ins where imports find them; returns what takes them out again."""
    made = modules(state)
    kept = {name: sys.modules.pop(name, None) for name in (*made, *NODE_MODULES)}
    sys.modules.update(made)

    def remove() -> None:
        for name, before in kept.items():
            sys.modules.pop(name, None)
            if before is not None:
                sys.modules[name] = before

    return remove
