# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportUnknownMemberType=false
"""Nodes on LoRAs alone: open, merge, resize, save."""

from typing import Any, get_args

from comfy_api.v0_0_2 import io, ui

from lbm_lora.adapter import Adapter, load_adapter
from lbm_lora.comfy import files
from lbm_lora.comfy.listener import NodeProgress, running
from lbm_lora.comfy.model_nodes import CATEGORY, LBM_LORA, lora_input
from lbm_lora.configs.values import BiasesAs, FormatName, MergeMethod, NormsAs

MAX_SIZE = "Largest file size, such as 200MB: the best LoRA that fits into it; the ranks are ignored. Empty: by rank."


def prefix_input(default: str) -> Any:
    return io.String.Input(
        "filename_prefix",
        default=default,
        tooltip="Folder and beginning of the file name, in ComfyUI's output folder. A number follows.",
    )


def rank_input(name: str, default: int, tooltip: str) -> Any:
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
            inputs=[lora_input()],
            outputs=[LBM_LORA.Output(display_name="LBM_LORA")],
        )

    @classmethod
    def fingerprint_inputs(cls, lora: str) -> Any:
        return files.stamp("loras", lora)

    @classmethod
    def execute(cls, lora: str) -> Any:
        with running():
            return io.NodeOutput(load_adapter(files.path_of("loras", lora)))


class Merge(io.ComfyNode):
    """Two LoRAs to one."""

    @classmethod
    def define_schema(cls) -> Any:
        return io.Schema(
            node_id="LbmLoraMerge",
            display_name="Merge LBM LoRAs",
            category=CATEGORY,
            description="Merge two LoRAs into one that does what both do together. Chain nodes to merge more.",
            inputs=[
                LBM_LORA.Input("lora", tooltip="The first LoRA."),
                LBM_LORA.Input("lora2", tooltip="The second LoRA."),
                io.String.Input(
                    "scales",
                    default="1 1",
                    tooltip="A scale for each LoRA, separated by a space. By layer: 0.8,down_blocks=0.5,attn1=0.",
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
            description="Give a LoRA a lower rank or a smaller file. It needs no checkpoint.",
            inputs=[
                LBM_LORA.Input("lora", tooltip="The LoRA to resize."),
                rank_input("rank", 16, "Rank of linear layers. Convolutions get half of it."),
                io.String.Input("max_size", default="", tooltip=MAX_SIZE),
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
                prefix_input("loras/lbm"),
                io.Combo.Input(
                    "format",
                    options=list(get_args(FormatName)),
                    default="native",
                    tooltip="native for these nodes and lbm-lora; comfyui for ComfyUI's own LoRA loaders; the others "
                    "for the programs of those names. peft makes a folder.",
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
        suffix = "" if format == "peft" else ".safetensors"
        with running({"biases": "biases", "norms": "norms"}), files.new_path(filename_prefix, suffix) as path:
            saved = str(lora.save(path, format, biases=biases, norms=norms))
            return io.NodeOutput(saved, ui=ui.PreviewText(saved))


NODES = (OpenLora, Merge, Resize, Save)
