"""`LBMPipeline`: the diffusers pipeline of an LBM checkpoint, with LoRAs loaded, mixed, scaled and unloaded live."""

import logging
import re
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from lbm_lora.checkpoint import Checkpoint, CheckpointLike, dtype_of, open_checkpoint
from lbm_lora.errors import ConfigError, ImageError, Option
from lbm_lora.hub import local_checkpoint
from lbm_lora.model.bridge_pipeline import Generators, Given, LatentBridgePipeline
from lbm_lora.model.build import LBMModel, load_model
from lbm_lora.model.device import resolve_device
from lbm_lora.model.lora_pipeline import LoraPipeline, versions
from lbm_lora.model.schedule import check_step_count, step_counts
from lbm_lora.regular_file import is_same

_UNET = "unet"  # the folder of the denoiser, in a model's folder
_ELSEWHERE = {
    "prompt": "LBM takes no prompt: the image alone decides.",
    "negative_prompt": "LBM takes no prompt: the image alone decides.",
    "guidance_scale": "LBM takes no prompt, so nothing is guided. `with pipe.lora_scale(0.5):` weakens a LoRA.",
    "strength": "LBM takes no strength. `with pipe.lora_scale(0.5):` weakens a LoRA.",
    "mask_image": "Give the mask as mask=.",
    "cross_attention_kwargs": "Scale LoRAs by set_adapters, or `with pipe.lora_scale(0.5):`.",
}
"""Arguments of other pipelines -> what to do here."""


class LBMPipeline(LoraPipeline):
    """An LBM that translates images, with any number of LoRAs.

    From an LBM checkpoint: `from_checkpoint`; from a folder that `save_pretrained` has written: `from_pretrained`. How
    images are translated: `LatentBridgePipeline.__call__`. The methods for LoRAs have the names of diffusers and PEFT.
    LoRAs are computed next to the weights, or added to them (`fuse_lora`, and always where the unet is compiled);
    biases and norms are always added. Either way the weights come back bit for bit.
    """

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

        Raises:
            CheckpointError: the file cannot be read, or its tensors are not those of its configuration.
            HubError: it cannot be fetched from the hub.
            ConfigError: the configuration is missing or wrong, or asks for conditioning images.
        """
        dtype = dtype_of(torch_dtype) if isinstance(torch_dtype, str) else torch_dtype
        checkpoint = local_checkpoint(checkpoint) if isinstance(checkpoint, str | Path) else checkpoint
        version = versions(checkpoint) if isinstance(checkpoint, Path) else None
        pipe = cls.from_model(load_model(checkpoint, config_path=config_path, device=device, dtype=dtype))
        # an open checkpoint may be closed by its owner: keep a view of our own
        pipe._base = open_checkpoint(checkpoint) if isinstance(checkpoint, Checkpoint) else checkpoint
        pipe._base_version = version
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
            pipe._base, pipe._base_version = folder, versions(folder)
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> "LBMPipeline":
        """A pipeline with the networks of another one; see diffusers. It has the same base."""
        pipe = cast("LBMPipeline", super().from_pipe(pipeline, **kwargs))
        if isinstance(pipeline, LoraPipeline):
            pipe._base, pipe._base_version = pipeline._base, pipeline._base_version
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

        Raises:
            ConfigError: LoRAs act that are not fused, or the folder is the pipeline's own base.
            FileExistsError: see `LatentBridgePipeline.save_pretrained`.
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
        before = versions(Path(save_directory))
        digest = None if state.acting else self._base_digest()
        if versions(Path(save_directory)) != before:  # that takes seconds
            raise FileExistsError(f"{save_directory} has changed while the model's digest was computed. Save it again.")
        self.register_to_config(base_fingerprint=digest)
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

    def __call__(
        self,
        image: Given,
        mask: Given | None = None,
        num_inference_steps: int = 1,
        *,
        seed: int | None = None,
        generator: Generators | None = None,
        size: int | None = None,
        keep_detail: float = 0.0,
        match_color: float = 0.0,
        sample_posterior: bool = False,
        batch_size: int = 1,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **unknown: Any,
    ) -> ImagePipelineOutput | Any:
        for name in unknown:
            raise TypeError(f"LBMPipeline has no argument '{name}'. {_ELSEWHERE.get(name, '')}".rstrip())
        self._loras.refresh_for_compiled()
        return super().__call__(
            image,
            mask,
            num_inference_steps,
            seed=seed,
            generator=generator,
            size=size,
            keep_detail=keep_detail,
            match_color=match_color,
            sample_posterior=sample_posterior,
            batch_size=batch_size,
            output_type=output_type,
            return_dict=return_dict,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )

    __call__.__doc__ = LatentBridgePipeline.__call__.__doc__

    def bucket(self, width: int, height: int, size: int | None = None) -> tuple[int, int]:
        """The (width, height) that an image is stretched to before it is translated.

        Raises:
            ConfigError: `size` is below 64.
        """
        try:
            return super().bucket(width, height, size)
        except ValueError:
            raise ConfigError(f"size {size} is too small for the buckets. Use 64 or more.") from None

    def check_steps(self, steps: int) -> None:
        """Warn of a number of steps that leaves the trained timesteps.

        Raises:
            ConfigError: `steps` is below 1.
        """
        check_step_count(steps, self.config["trained_steps"], what="num_inference_steps")

    def check_finite(self, values: Tensor, what: str) -> None:
        """Refuse NaN and infinite values; see `check_finite`.

        Raises:
            ImageError: there are some.
        """
        check_finite(values, self.unet.dtype, what=what)


def _reachable(value: object) -> object:
    """An argument of `to`: a device that this machine lacks becomes the CPU."""
    is_device = isinstance(value, torch.device) or (isinstance(value, str) and re.match("cuda|mps", value))
    return resolve_device(str(value)) if is_device and str(value) != "meta" else value


def _says_something(record: logging.LogRecord) -> bool:
    """Whether it is not diffusers' warning that the modules of an empty list are not kept in fp32."""
    return "kept in float32: []" not in record.getMessage()


def check_finite(images: Tensor, dtype: torch.dtype, *, what: str) -> None:
    """Refuse what a model has made of NaN and infinite values, with the likely reason.

    Args:
        dtype: that the networks ran in.
        what: the name of `images` in the error.

    Raises:
        ImageError: a value is not finite.
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
