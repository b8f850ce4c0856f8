# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportUnknownMemberType=false
"""Nodes on checkpoints: extract a LoRA, calibrate, validate, fuse."""

from typing import Any, cast

from comfy_api.v0_0_2 import io, ui

from lbm_lora.comfy import files
from lbm_lora.comfy.heat_image import error_image
from lbm_lora.comfy.listener import NodeProgress, running
from lbm_lora.comfy.lora_nodes import MAX_SIZE, prefix_input, rank_input
from lbm_lora.comfy.model_nodes import CATEGORY, LBM_LORA, checkpoint_input, lora_input, strength_input
from lbm_lora.comfy.values import as_batch, as_photos, device
from lbm_lora.report import short_text


class Extract(io.ComfyNode):
    """Two checkpoints to a LoRA."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="LbmLoraExtract",
            display_name="Extract LBM LoRA",
            category=CATEGORY,
            description="Extract a LoRA: the change from a base to a fine-tuned checkpoint.",
            inputs=[
                checkpoint_input("base", "The checkpoint that the tuned one started from."),
                checkpoint_input("tuned", "The fine-tuned checkpoint."),
                rank_input("rank", 32, "Rank of linear layers. 9999: as high as each matrix allows."),
                rank_input("conv_rank", 16, "Rank of convolutions. 9999: as high as each allows."),
                io.String.Input("max_size", default="", tooltip=MAX_SIZE),
                io.String.Input(
                    "calibration",
                    default="",
                    tooltip="Path of statistics from Calibrate: minimize the error of the output, not that of the "
                    "weights. Empty: none.",
                ),
            ],
            outputs=[LBM_LORA.Output(display_name="LBM_LORA")],
        )

    @classmethod
    def fingerprint_inputs(cls, base: str, tuned: str, **others: Any) -> Any:
        stamps = [files.stamp("diffusion_models", name) for name in (base, tuned)]
        statistics = files.typed_stamp(others.get("calibration"))
        return stamps, statistics, sorted((name, str(value)) for name, value in others.items())

    @classmethod
    def execute(
        cls, base: str, tuned: str, rank: int, conv_rank: int, max_size: str = "", calibration: str = ""
    ) -> Any:
        from lbm_lora.verbs.extract import extract

        ranks: dict[str, Any] = {"max_size": max_size.strip()} if max_size.strip() else {}
        with running(_EXTRACT):
            lora = extract(
                files.path_of("diffusion_models", base),
                files.path_of("diffusion_models", tuned),
                calibration=files.typed_path(calibration) if calibration.strip() else None,
                device=device(),
                progress=NodeProgress(),
                **(ranks or {"rank": rank, "conv_rank": conv_rank}),
            )
            return io.NodeOutput(lora)


_EXTRACT = {
    "base_model_path": "base",
    "tuned_model_path": "tuned",
    "rank": "rank",
    "conv_rank": "conv_rank",
    "max_size": "max_size",
    "calibration": "calibration",
}


class Calibrate(io.ComfyNode):
    """A tuned checkpoint and images to statistics."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="LbmLoraCalibrate",
            display_name="Calibrate LBM",
            category=CATEGORY,
            description="Measure on images which errors a tuned model's output is sensitive to. Link the "
            "path to calibration of Extract.",
            inputs=[
                checkpoint_input("tuned", "The fine-tuned checkpoint to measure."),
                io.Image.Input("images", tooltip="Source images of the kind that the model is used on."),
                io.String.Input(
                    "save_as",
                    default="lbm_calibration.safetensors",
                    tooltip="Write the statistics to this file in ComfyUI's output folder. Statistics of that name are "
                    "replaced.",
                ),
            ],
            outputs=[io.String.Output(display_name="path")],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, tuned: str, save_as: str, **others: Any) -> Any:
        return files.stamp("diffusion_models", tuned), save_as

    @classmethod
    def execute(cls, tuned: str, images: Any, save_as: str) -> Any:
        from lbm_lora.verbs.calibrate import calibrate

        with running({"tuned_model_path": "tuned", "images": "images", "save_to": "save_as"}):
            path = files.output_path(save_as)
            model = files.path_of("diffusion_models", tuned)
            calibrate(model, as_photos(images), save_to=path, device=device(), progress=NodeProgress())
            return io.NodeOutput(str(path), ui=ui.PreviewText(str(path)))


class Validate(io.ComfyNode):
    """A LoRA against its tuned checkpoint."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="LbmLoraValidate",
            display_name="Validate LBM LoRA",
            category=CATEGORY,
            description="Measure how well base + LoRA reproduces the tuned checkpoint. Link the summary to "
            "Preview as Text, and the heat map of relative errors by block and layer to Preview Image.",
            inputs=[
                checkpoint_input("base", "The checkpoint that the LoRA was made for."),
                checkpoint_input("tuned", "The fine-tuned checkpoint."),
                lora_input(),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Source images: also compare the outputs of base and base + LoRA with the tuned model's.",
                ),
            ],
            outputs=[io.Image.Output(display_name="heat map"), io.String.Output(display_name="summary")],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, base: str, tuned: str, lora: str, **_: Any) -> Any:
        return [files.stamp("diffusion_models", name) for name in (base, tuned)], files.stamp("loras", lora)

    @classmethod
    def execute(cls, base: str, tuned: str, lora: str, images: Any = None) -> Any:
        from lbm_lora.api.measured import validate

        with running({**_EXTRACT, "lora_path": "lora", "images": "images"}):
            report = validate(
                files.path_of("diffusion_models", base),
                files.path_of("diffusion_models", tuned),
                files.path_of("loras", lora),
                images=None if images is None else cast(Any, as_photos(images)),
                device=device(),
                progress=NodeProgress(),
            )
            summary = short_text(report)
            return io.NodeOutput(as_batch([error_image(report.weights.rows)]), summary, ui=ui.PreviewText(summary))


class Fuse(io.ComfyNode):
    """A LoRA into a checkpoint."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="LbmLoraFuse",
            display_name="Fuse LBM LoRA",
            category=CATEGORY,
            description="Add a LoRA to a checkpoint's weights and write the result. What is saved in "
            "diffusion_models/ is listed by Load LBM Model.",
            inputs=[
                checkpoint_input("checkpoint", "The checkpoint that the LoRA was made for."),
                lora_input(),
                strength_input(),
                prefix_input("diffusion_models/lbm"),
            ],
            outputs=[io.String.Output(display_name="path")],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, lora: str, **others: Any) -> Any:
        return files.stamp("diffusion_models", checkpoint), files.stamp("loras", lora), sorted(map(str, others.items()))

    @classmethod
    def execute(cls, checkpoint: str, lora: str, strength: float, filename_prefix: str) -> Any:
        from lbm_lora.api.models import fuse

        names = {"base_model_path": "checkpoint", "lora_path": "lora", "lora_scale": "strength"}
        with running(names), files.new_path(filename_prefix) as path:
            base = files.path_of("diffusion_models", checkpoint)
            fuse(
                base,
                files.path_of("loras", lora),
                save_to=path,
                lora_scale=strength,
                progress=NodeProgress(),
            )
            return io.NodeOutput(str(path), ui=ui.PreviewText(str(path)))


NODES = (Extract, Calibrate, Validate, Fuse)
