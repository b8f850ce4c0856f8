# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportUnknownMemberType=false
"""Nodes that make, change, measure and save LoRAs: the verbs of the command line on ComfyUI's values."""

from typing import Any, cast, get_args

from comfy_api.v0_0_2 import io, ui

from lbm_lora.adapter import Adapter, load_adapter
from lbm_lora.comfy import files
from lbm_lora.comfy.heat_image import error_image
from lbm_lora.comfy.listener import NodeProgress, running
from lbm_lora.comfy.model_nodes import CATEGORY, LBM_LORA, checkpoint_input, lora_input, strength_input
from lbm_lora.comfy.values import as_batch, as_photos, device
from lbm_lora.configs.values import BiasesAs, FormatName, MergeMethod, NormsAs
from lbm_lora.report import short_text

_MAX_SIZE = "Instead of the ranks: the best LoRA that a file of this size can hold, such as 200MB. Empty: by rank."


def _rank(name: str, default: int, tooltip: str) -> Any:
    return io.Int.Input(name, default=default, min=1, max=9999, tooltip=tooltip)


class OpenLora(io.ComfyNode):
    """A LoRA file as a value."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="LbmLoraOpenLora",
            display_name="Open LBM LoRA",
            category=CATEGORY,
            description="Open a LoRA file to merge it, resize it, or save it in another format.",
            inputs=[lora_input("A LoRA file in models/loras, of any format that lbm-lora reads.")],
            outputs=[LBM_LORA.Output(display_name="LBM_LORA")],
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str) -> Any:
        return files.stamp("loras", lora)

    @classmethod
    def execute(cls, lora: str) -> Any:
        with running():
            return io.NodeOutput(load_adapter(files.path_of("loras", lora)))


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
                _rank("rank", 32, "Rank of linear layers. 9999: as high as each matrix allows."),
                _rank("conv_rank", 16, "Rank of convolutions. 9999: as high as each allows."),
                io.String.Input("max_size", default="", tooltip=_MAX_SIZE),
                io.String.Input(
                    "calibration",
                    default="",
                    tooltip="Statistics from Calibrate (its path): least error of the output instead of the weights. "
                    "Empty: none.",
                ),
            ],
            outputs=[LBM_LORA.Output(display_name="LBM_LORA")],
        )

    @classmethod
    def fingerprint_inputs(cls, base: str, tuned: str, **others: Any) -> Any:
        stamps = [files.stamp("diffusion_models", name) for name in (base, tuned)]
        return stamps, sorted((name, str(value)) for name, value in others.items())

    @classmethod
    def execute(
        cls, base: str, tuned: str, rank: int, conv_rank: int, max_size: str = "", calibration: str = ""
    ) -> Any:
        from lbm_lora.api.loras import extract

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
            description="Measure on images which errors a tuned model's output is sensitive to. Extract "
            "takes the path.",
            inputs=[
                checkpoint_input("tuned", "The fine-tuned checkpoint to measure."),
                io.Image.Input("images", tooltip="Source images of the kind that the model is used on."),
                io.String.Input(
                    "save_as",
                    default="lbm_calibration.safetensors",
                    tooltip="Write the statistics to this file in ComfyUI's output folder.",
                ),
            ],
            outputs=[io.String.Output(display_name="path")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, tuned: str, images: Any, save_as: str) -> Any:
        from lbm_lora.api.models import calibrate

        with running({"tuned_model_path": "tuned", "images": "images", "save_to": "save_as"}):
            path = files.output_path(save_as)
            model = files.path_of("diffusion_models", tuned)
            calibrate(model, as_photos(images), save_to=path, device=device(), progress=NodeProgress())
            return io.NodeOutput(str(path), ui=ui.PreviewText(str(path)))


class Merge(io.ComfyNode):
    """Two LoRAs to one."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="LbmLoraMerge",
            display_name="Merge LBM LoRAs",
            category=CATEGORY,
            description="Merge two LoRAs into one that does what both do together. Chain nodes for more.",
            inputs=[
                LBM_LORA.Input("lora", tooltip="The first LoRA."),
                LBM_LORA.Input("lora2", tooltip="The second LoRA."),
                io.String.Input(
                    "scales",
                    default="1 1",
                    tooltip="Scale of each LoRA, separated by a space. By layer: 0.8,down_blocks=0.5,attn1=0.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(get_args(MergeMethod)),
                    default="sum",
                    tooltip="Add the LoRAs up (sum), or let them interfere less: ties, dare, knots, core.",
                ),
            ],
            outputs=[LBM_LORA.Output(display_name="LBM_LORA")],
        )

    @classmethod
    def execute(cls, lora: Adapter, lora2: Adapter, scales: str, method: MergeMethod) -> Any:
        from lbm_lora.api.combined import merge

        with running({"lora_path": "lora", "lora_scale": "scales", "method": "method"}):
            scale = tuple(scales.split()) or 1.0
            return io.NodeOutput(merge([lora, lora2], lora_scale=scale, method=method, progress=NodeProgress()))


class Resize(io.ComfyNode):
    """A LoRA to other ranks."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="LbmLoraResize",
            display_name="Resize LBM LoRA",
            category=CATEGORY,
            description="Give a LoRA a lower rank or a smaller file, from its factors alone.",
            inputs=[
                LBM_LORA.Input("lora", tooltip="The LoRA to resize."),
                _rank("rank", 16, "Rank of linear layers. Convolutions get half of it."),
                io.String.Input("max_size", default="", tooltip=_MAX_SIZE),
            ],
            outputs=[LBM_LORA.Output(display_name="LBM_LORA")],
        )

    @classmethod
    def execute(cls, lora: Adapter, rank: int, max_size: str = "") -> Any:
        from lbm_lora.api.combined import resize

        ranks: dict[str, Any] = {"max_size": max_size.strip()} if max_size.strip() else {"rank": rank}
        with running({"lora_path": "lora", "rank": "rank", "max_size": "max_size"}):
            return io.NodeOutput(resize(lora, progress=NodeProgress(), **ranks))


class Save(io.ComfyNode):
    """A LoRA to a file."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="LbmLoraSave",
            display_name="Save LBM LoRA",
            category=CATEGORY,
            description="Write a LoRA to ComfyUI's output folder, for lbm-lora or another program. What is saved in "
            "loras/ is listed by the LoRA loaders.",
            inputs=[
                LBM_LORA.Input("lora", tooltip="The LoRA to save."),
                io.String.Input(
                    "filename_prefix",
                    default="loras/lbm",
                    tooltip="Folder and beginning of the name, in the output folder; a number follows.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(get_args(FormatName)),
                    default="native",
                    tooltip="native for these nodes and lbm-lora; comfyui for ComfyUI's own LoRA loaders; the others "
                    "for the programs of these names. peft is a folder.",
                ),
                io.Combo.Input(
                    "biases",
                    options=["keep", "lora_bias", "drop"],
                    default="keep",
                    tooltip="Changes of biases, for a format that cannot hold them: keep is then an error, lora_bias "
                    "writes them as PEFT has them, drop leaves them out.",
                ),
                io.Combo.Input(
                    "norms",
                    options=["keep", "drop"],
                    default="keep",
                    tooltip="Changes of norms, for a format that cannot hold them: keep is then an error, drop leaves "
                    "them out.",
                ),
            ],
            outputs=[io.String.Output(display_name="path")],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        lora: Adapter,
        filename_prefix: str,
        format: FormatName,
        biases: BiasesAs = "keep",
        norms: NormsAs = "keep",
    ) -> Any:
        with running({"biases": "biases", "norms": "norms"}):
            path = files.new_path(filename_prefix, "" if format == "peft" else ".safetensors")
            saved = str(lora.save(path, format, biases=biases, norms=norms))
            return io.NodeOutput(saved, ui=ui.PreviewText(saved))


class Validate(io.ComfyNode):
    """A LoRA against its tuned checkpoint."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="LbmLoraValidate",
            display_name="Validate LBM LoRA",
            category=CATEGORY,
            description="Measure how well base + LoRA reproduces the tuned checkpoint: numbers, and a heat map of the "
            "relative error by block and layer.",
            inputs=[
                checkpoint_input("base", "The checkpoint that the LoRA was made for."),
                checkpoint_input("tuned", "The fine-tuned checkpoint."),
                lora_input("The LoRA file."),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Also compare the outputs of base, base + LoRA and tuned on these images.",
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
                lora_input("The LoRA file."),
                strength_input(),
                io.String.Input(
                    "filename_prefix",
                    default="diffusion_models/lbm",
                    tooltip="Folder and beginning of the name, in the output folder; a number follows.",
                ),
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

        with running({"base_model_path": "checkpoint", "lora_path": "lora", "lora_scale": "strength"}):
            path = files.new_path(filename_prefix)
            base = files.path_of("diffusion_models", checkpoint)
            fuse(
                base,
                files.path_of("loras", lora),
                save_to=path,
                lora_scale=strength,
                progress=NodeProgress(),
            )
            return io.NodeOutput(str(path), ui=ui.PreviewText(str(path)))


NODES = [OpenLora, Extract, Calibrate, Merge, Resize, Save, Validate, Fuse]
