# pyright: reportMissingImports=false, reportUntypedBaseClass=false
"""A pack for the tests: an LBM_MODEL of the shape that ComfyUI-LBMWrapper has, and a sampler of one step for it."""

import hashlib
from typing import Any

import folder_paths
import torch
from comfy_api.v0_0_2 import ComfyExtension, io
from torch import nn

LBM_MODEL = io.Custom("LBM_MODEL")


class Wrapped(nn.Module):
    """The children that the wrapper's module has."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vae, self.denoiser, self.conditioner = model.vae, model.denoiser, nn.Identity()


class LoadWrapped(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> Any:
        files = folder_paths.get_filename_list("diffusion_models")
        return io.Schema(
            node_id="TestLoadWrapped",
            inputs=[io.Combo.Input("checkpoint", options=files)],
            outputs=[LBM_MODEL.Output()],
        )

    @classmethod
    def execute(cls, checkpoint: str) -> Any:
        from lbm_lora.model.build import load_model

        path = folder_paths.get_full_path_or_raise("diffusion_models", checkpoint)
        return io.NodeOutput(Wrapped(load_model(path, dtype=torch.float32)))


class SampleWrapped(io.ComfyNode):
    """One step with a model, and the bytes of another one's parameters."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="TestSampleWrapped",
            inputs=[LBM_MODEL.Input("model"), LBM_MODEL.Input("original"), io.Image.Input("image")],
            outputs=[io.Image.Output(), io.String.Output()],
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    def execute(cls, model: Any, original: Any, image: Any) -> Any:
        from lbm_lora.model.bridge_pipeline import decode_latents, encode_images

        source = encode_images(model.vae, image.movedim(-1, 1) * 2 - 1, device=torch.device("cpu"))
        target = source - model.denoiser(source, torch.tensor([1000.0]), encoder_hidden_states=None).sample
        result = (decode_latents(model.vae, target) / 2 + 0.5).clamp(0, 1).movedim(1, -1)
        digest = hashlib.sha256()
        for parameter in original.parameters():
            digest.update(parameter.detach().contiguous().view(torch.uint8).numpy().tobytes())
        return io.NodeOutput(result, digest.hexdigest(), ui={"text": (digest.hexdigest(),)})


class Extension(ComfyExtension):
    async def get_node_list(self) -> list[Any]:
        return [LoadWrapped, SampleWrapped]


async def comfy_entrypoint() -> Extension:
    return Extension()
