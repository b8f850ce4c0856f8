# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportUnknownMemberType=false
"""Nodes that load, adapt and run an LBM.

Network classes are imported when a node runs: ComfyUI starts without them, and a package that is missing or broken is
an error in the node's box.
"""

from pathlib import Path
from typing import Any

from comfy_api.v0_0_2 import io

from lbm_lora.adapter import Adapter
from lbm_lora.comfy import files
from lbm_lora.comfy.listener import running

CATEGORY = "LBM"
LBM_LORA = io.Custom("LBM_LORA")
LBM_MODEL = io.Custom("LBM_MODEL")
SAME_MODEL = io.Custom("MODEL,LBM_MODEL")
"""The kind of model that came in: a socket that fits both."""

STRENGTH = "Scale of the LoRA: 0 is the model without it, 1 the LoRA as it was made. May be negative."
BLOCKS = (
    "Another strength for some layers, such as 'down_blocks=0.5,attn1=0'. A pattern is part of a name, a glob, or "
    "re:REGEX; if several match a layer, the last one counts. Empty: one strength for all layers."
)


def model_input() -> Any:
    return io.MultiType.Input(
        "model",
        types=[io.Model, LBM_MODEL],
        tooltip="The MODEL of Load LBM Model, or the LBM_MODEL of ComfyUI-LBMWrapper. It stays as it is.",
    )


def strength_input() -> Any:
    return io.Float.Input("strength", default=1.0, min=-100.0, max=100.0, step=0.01, tooltip=STRENGTH)


def blocks_input() -> Any:
    return io.String.Input("blocks", default="", tooltip=BLOCKS)


def checkpoint_input(name: str, tooltip: str) -> Any:
    return io.Combo.Input(name, options=files.names("diffusion_models"), tooltip=tooltip)


def lora_input() -> Any:
    tooltip = "A LoRA file in models/loras: native, or in a format of ComfyUI, kohya, LyCORIS, diffusers or PEFT."
    return io.Combo.Input("lora", options=files.names("loras"), tooltip=tooltip)


def _adapted(model: Any, lora: Path | Adapter, strength: float, blocks: str) -> Any:
    """Return the output of a node that puts a LoRA onto a model."""
    with running({"lora_scale": "blocks"}):
        from lbm_lora.comfy.adapters import scale_of, with_lora

        return io.NodeOutput(with_lora(model, lora, scale_of(strength, blocks)))


class LoadModel(io.ComfyNode):
    """An LBM checkpoint as MODEL and VAE."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="LbmLoraLoadModel",
            display_name="Load LBM Model",
            category=CATEGORY,
            description="Load an LBM (Latent Bridge Matching) checkpoint as a MODEL and its VAE. ComfyUI's own LoRA "
            "loaders work on the MODEL with LoRAs in the format comfyui.",
            inputs=[
                checkpoint_input("checkpoint", "An LBM checkpoint in models/diffusion_models: a base, or a tuned one."),
                io.Combo.Input(
                    "precision",
                    options=["auto", "bf16", "fp16", "fp32"],
                    default="auto",
                    tooltip="Store the denoiser in this precision. auto: ComfyUI's choice for this device, which its "
                    "flags can change (such as --fp8_e4m3fn-unet). fp16 can overflow.",
                ),
            ],
            outputs=[io.Model.Output(display_name="MODEL"), io.Vae.Output(display_name="VAE")],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, precision: str) -> Any:
        return files.stamp("diffusion_models", checkpoint), precision

    @classmethod
    def execute(cls, checkpoint: str, precision: Any) -> Any:
        with running():
            from lbm_lora.comfy.network import load

            return io.NodeOutput(*load(files.path_of("diffusion_models", checkpoint), precision))


class LoadLora(io.ComfyNode):
    """A LoRA file onto a model."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="LbmLoraLoadLora",
            display_name="Load LBM LoRA",
            category=CATEGORY,
            description="Apply a LoRA file of any format that lbm-lora reads to an LBM. Chain nodes to apply several.",
            inputs=[
                model_input(),
                lora_input(),
                strength_input(),
                blocks_input(),
            ],
            outputs=[SAME_MODEL.Output(display_name="MODEL")],
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str, **others: Any) -> Any:
        return files.stamp("loras", lora), sorted((name, str(value)) for name, value in others.items())

    @classmethod
    def execute(cls, model: Any, lora: str, strength: float, blocks: str = "") -> Any:
        return _adapted(model, files.path_of("loras", lora), strength, blocks)


class ApplyLora(io.ComfyNode):
    """A LoRA that other nodes made onto a model."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="LbmLoraApplyLora",
            display_name="Apply LBM LoRA",
            category=CATEGORY,
            description="Apply a LoRA from another node to an LBM, for example to try it before you save it.",
            inputs=[
                model_input(),
                LBM_LORA.Input("lora", tooltip="A LoRA from Extract, Merge, Resize or Open."),
                strength_input(),
                blocks_input(),
            ],
            outputs=[SAME_MODEL.Output(display_name="MODEL")],
        )

    @classmethod
    def execute(cls, model: Any, lora: Adapter, strength: float, blocks: str = "") -> Any:
        return _adapted(model, lora, strength, blocks)


class Translate(io.ComfyNode):
    """Images through an LBM."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="LbmLoraTranslate",
            display_name="LBM Translate (Relight)",
            category=CATEGORY,
            description="Translate every image of a batch with an LBM: relight it, or whatever the model was trained "
            "for. Results keep the size of their images.",
            inputs=[
                io.Model.Input("model", tooltip="An LBM from Load LBM Model, with or without LoRAs."),
                io.Vae.Input("vae", tooltip="The VAE of Load LBM Model."),
                io.Image.Input("image", tooltip="Images to translate, or subjects to put onto a background."),
                io.Combo.Input(
                    "steps",
                    options=[1, 2, 4],
                    default=1,
                    tooltip="Denoiser calls per image. LBMs are usually trained for 1, 2 and 4. One is mostly enough.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=True,
                    tooltip="Seed for the noise between steps. With one step nothing is random.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White takes the result, black keeps the image (or the background). One for all images, or "
                    "one for each.",
                ),
                io.Image.Input(
                    "background",
                    optional=True,
                    tooltip="Put the image onto this background where the mask is white, and relight it there.",
                ),
                io.Float.Input(
                    "keep_detail",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the image's fine detail that is put back into the result: 0 none, 1 all of it.",
                ),
                io.Float.Input(
                    "match_color",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Move the result's colours to the mean and spread of the image's: 0 not at all, 1 fully.",
                ),
                io.Int.Input(
                    "size",
                    default=0,
                    min=0,
                    max=16384,
                    step=64,
                    tooltip="Size to work at, the square root of the pixel budget (1024: about one megapixel). 0: the "
                    "model's own.",
                ),
            ],
            outputs=[io.Image.Output(display_name="IMAGE")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        vae: Any,
        image: Any,
        steps: int,
        seed: int,
        keep_detail: float = 0.0,
        match_color: float = 0.0,
        size: int = 0,
        mask: Any = None,
        background: Any = None,
    ) -> Any:
        with running(is_sampling=True):
            from lbm_lora.comfy.translate import TranslateOptions, translate

            options = TranslateOptions(
                steps=steps, seed=seed, keep_detail=keep_detail, match_color=match_color, size=size
            )
            return io.NodeOutput(translate(model, vae, image, options, mask=mask, background=background))


NODES = [LoadModel, LoadLora, ApplyLora, Translate]
