# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportUnknownMemberType=false
"""The nodes of lbm-lora, and the entry point that ComfyUI calls.

Network classes are imported when a node runs: ComfyUI starts without them, and a package that is missing or broken is
an error in the node's box.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from comfy_api.v0_0_2 import ComfyExtension, io, ui

import lbm_lora
from lbm_lora.adapter import Adapter, load_adapter
from lbm_lora.choices import BiasesAs, FormatName, MergeMethod, NormsAs
from lbm_lora.comfy import files
from lbm_lora.comfy.heat_image import error_image
from lbm_lora.comfy.listener import NodeProgress, running
from lbm_lora.report import short_text

_LORA = io.Custom("LBM_LORA")
_MODEL = io.Custom("LBM_MODEL")
_SAME_MODEL = io.Custom("MODEL,LBM_MODEL")
"""The kind of model that came in: a socket that fits both."""

_MAX_SIZE = "Largest file size, such as 200MB: the best LoRA that fits into it; the ranks are ignored. Empty: by rank."
_STRENGTH = "Scale of the LoRA: 0 is the model without it, 1 the LoRA as it was made. May be negative."
_BLOCKS = (
    "Another strength for some layers, such as 'down_blocks=0.5,attn1=0'. A pattern is part of a name, a glob, or "
    "re:REGEX; if several match a layer, the last one counts. Empty: one strength for all layers."
)
_PREFIX = "Folder and beginning of the file name, in ComfyUI's output folder. A number follows."


def _schema(node: type[io.ComfyNode], title: str, inputs: list[Any], *outputs: Any, writes: bool = False) -> Any:
    """The schema of a node, whose docstring is its description."""
    return io.Schema(
        node_id=f"LbmLora{node.__name__}",
        display_name=title,
        category="LBM",
        description=" ".join((node.__doc__ or "").split()),
        inputs=inputs,
        outputs=list(outputs),
        is_output_node=writes,
    )


def _model() -> Any:
    return io.MultiType.Input(
        "model",
        types=[io.Model, _MODEL],
        tooltip="The MODEL of Load LBM Model, or the LBM_MODEL of ComfyUI-LBMWrapper. It stays as it is.",
    )


def _checkpoint(name: str, tooltip: str) -> Any:
    return io.Combo.Input(name, options=files.names("diffusion_models"), tooltip=tooltip)


def _lora_file() -> Any:
    tooltip = "A LoRA file in models/loras: native, or in a format of ComfyUI, kohya, LyCORIS, diffusers or PEFT."
    return io.Combo.Input("lora", options=files.names("loras"), tooltip=tooltip)


def _strength() -> Any:
    return io.Float.Input("strength", default=1.0, min=-100.0, max=100.0, step=0.01, tooltip=_STRENGTH)


def _rank(name: str, default: int, tooltip: str) -> Any:
    return io.Int.Input(name, default=default, min=1, max=9999, tooltip=tooltip)


def _choice(name: str, options: Sequence[str | int], tooltip: str) -> Any:
    """A list of options, of which the first is the default."""
    return io.Combo.Input(name, options=list(options), default=options[0], tooltip=tooltip)


def _whole(name: str, high: int, tooltip: str, **more: Any) -> Any:
    return io.Int.Input(name, default=0, min=0, max=high, tooltip=tooltip, **more)


def _share(name: str, tooltip: str) -> Any:
    return io.Float.Input(name, default=0.0, min=0.0, max=1.0, step=0.05, tooltip=tooltip)


def _text(name: str, default: str, tooltip: str) -> Any:
    return io.String.Input(name, default=default, tooltip=tooltip)


def _said(path: Path | str) -> Any:
    """The output of a node that has written a file."""
    return io.NodeOutput(str(path), ui=ui.PreviewText(str(path)))


def _adapted(model: Any, lora: Path | Adapter, strength: float, blocks: str) -> Any:
    """The output of a node that puts a LoRA onto a model."""
    with running(lora_scale="blocks"):
        from lbm_lora.comfy.adapters import scale_of, with_lora

        return io.NodeOutput(with_lora(model, lora, scale_of(strength, blocks)))


class _ReadsFiles(io.ComfyNode):
    """A node that runs again when a file that it names is written again."""

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> Any:
        return files.stamps(inputs)


class LoadModel(_ReadsFiles):
    """Load an LBM (Latent Bridge Matching) checkpoint as a MODEL and its VAE. ComfyUI's own LoRA loaders work on the
    MODEL with LoRAs in the format comfyui.
    """

    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            cls,
            "Load LBM Model",
            [
                _checkpoint("checkpoint", "An LBM checkpoint in models/diffusion_models: a base, or a tuned one."),
                _choice(
                    "precision",
                    ["auto", "bf16", "fp16", "fp32"],
                    "Store the denoiser in this precision. auto: ComfyUI's choice for this device, which its "
                    "flags can change (such as --fp8_e4m3fn-unet). fp16 can overflow.",
                ),
            ],
            io.Model.Output(display_name="MODEL"),
            io.Vae.Output(display_name="VAE"),
        )

    @classmethod
    def execute(cls, checkpoint: str, precision: Any) -> Any:
        with running():
            from lbm_lora.comfy.network import load

            return io.NodeOutput(*load(files.path_of("diffusion_models", checkpoint), precision))


class LoadLora(_ReadsFiles):
    """Apply a LoRA file of any format that lbm-lora reads to an LBM. Chain nodes to apply several."""

    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            cls,
            "Load LBM LoRA",
            [_model(), _lora_file(), _strength(), _text("blocks", "", _BLOCKS)],
            _SAME_MODEL.Output(display_name="MODEL"),
        )

    @classmethod
    def execute(cls, model: Any, lora: str, strength: float, blocks: str = "") -> Any:
        return _adapted(model, files.path_of("loras", lora), strength, blocks)


class ApplyLora(io.ComfyNode):
    """Apply a LoRA from another node to an LBM, for example to try it before you save it."""

    @classmethod
    def define_schema(cls) -> Any:
        lora = _LORA.Input("lora", tooltip="A LoRA from Extract, Merge, Resize or Open.")
        return _schema(
            cls,
            "Apply LBM LoRA",
            [_model(), lora, _strength(), _text("blocks", "", _BLOCKS)],
            _SAME_MODEL.Output(display_name="MODEL"),
        )

    @classmethod
    def execute(cls, model: Any, lora: Adapter, strength: float, blocks: str = "") -> Any:
        return _adapted(model, lora, strength, blocks)


class Translate(io.ComfyNode):
    """Translate every image of a batch with an LBM: relight it, or whatever the model was trained for. Results keep
    the size of their images.
    """

    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            cls,
            "LBM Translate (Relight)",
            [
                io.Model.Input("model", tooltip="An LBM from Load LBM Model, with or without LoRAs."),
                io.Vae.Input("vae", tooltip="The VAE of Load LBM Model."),
                io.Image.Input("image", tooltip="Images to translate, or subjects to put onto a background."),
                _choice(
                    "steps",
                    [1, 2, 4],
                    "Denoiser calls per image. LBMs are usually trained for 1, 2 and 4. One is mostly enough.",
                ),
                _whole(
                    "seed",
                    2**63 - 1,
                    "Seed for the noise between steps. With one step nothing is random.",
                    control_after_generate=True,
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
                _share(
                    "keep_detail",
                    "Share of the image's fine detail that is put back into the result: 0 none, 1 all of it.",
                ),
                _share(
                    "match_color",
                    "Move the result's colours to the mean and spread of the image's: 0 not at all, 1 fully.",
                ),
                _whole(
                    "size",
                    16384,
                    "Size to work at, the square root of the pixel budget (1024: about one megapixel). 0: the "
                    "model's own.",
                    step=64,
                ),
            ],
            io.Image.Output(display_name="IMAGE"),
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

            options = TranslateOptions(steps, seed, keep_detail, match_color, size)
            return io.NodeOutput(translate(model, vae, image, options, mask=mask, background=background))


class Extract(_ReadsFiles):
    """Extract a LoRA: the change from a base to a fine-tuned checkpoint."""

    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            cls,
            "Extract LBM LoRA",
            [
                _checkpoint("base", "The checkpoint that the tuned one started from."),
                _checkpoint("tuned", "The fine-tuned checkpoint."),
                _rank("rank", 32, "Rank of linear layers. 9999: as high as each matrix allows."),
                _rank("conv_rank", 16, "Rank of convolutions. 9999: as high as each allows."),
                _text("max_size", "", _MAX_SIZE),
                _text(
                    "calibration",
                    "",
                    "Path of statistics from Calibrate: minimize the error of the output, not that of the "
                    "weights. Empty: none.",
                ),
            ],
            _LORA.Output(display_name="LBM_LORA"),
        )

    @classmethod
    def execute(
        cls, base: str, tuned: str, rank: int, conv_rank: int, max_size: str = "", calibration: str = ""
    ) -> Any:
        ranks: dict[str, Any] = {"rank": rank, "conv_rank": conv_rank}
        if max_size.strip():
            ranks = {"max_size": max_size.strip()}
        with running("rank", "conv_rank", "max_size", "calibration", base_model_path="base", tuned_model_path="tuned"):
            lora = lbm_lora.extract(
                files.path_of("diffusion_models", base),
                files.path_of("diffusion_models", tuned),
                calibration=files.typed_path(calibration) if calibration.strip() else None,
                device=files.device(),
                progress=NodeProgress(),
                **ranks,
            )
            return io.NodeOutput(lora)


class Calibrate(_ReadsFiles):
    """Measure on images which errors a tuned model's output is sensitive to. Link the path to calibration of
    Extract.
    """

    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            cls,
            "Calibrate LBM",
            [
                _checkpoint("tuned", "The fine-tuned checkpoint to measure."),
                io.Image.Input("images", tooltip="Source images of the kind that the model is used on."),
                _text(
                    "save_as",
                    "lbm_calibration.safetensors",
                    "Write the statistics to this file in ComfyUI's output folder. Statistics of that name are "
                    "replaced.",
                ),
            ],
            io.String.Output(display_name="path"),
            writes=True,
        )

    @classmethod
    def execute(cls, tuned: str, images: Any, save_as: str) -> Any:
        with running("images", tuned_model_path="tuned", save_to="save_as"):
            path = files.output_path(save_as)
            model = files.path_of("diffusion_models", tuned)
            photos = cast(Any, files.as_photos(images))
            lbm_lora.calibrate(model, photos, save_to=path, device=files.device(), progress=NodeProgress())
            return _said(path)


class Validate(_ReadsFiles):
    """Measure how well base + LoRA reproduces the tuned checkpoint. Link the summary to Preview as Text, and the
    heat map of relative errors by block and layer to Preview Image.
    """

    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            cls,
            "Validate LBM LoRA",
            [
                _checkpoint("base", "The checkpoint that the LoRA was made for."),
                _checkpoint("tuned", "The fine-tuned checkpoint."),
                _lora_file(),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Source images: also compare the outputs of base and base + LoRA with the tuned model's.",
                ),
            ],
            io.Image.Output(display_name="heat map"),
            io.String.Output(display_name="summary"),
            writes=True,
        )

    @classmethod
    def execute(cls, base: str, tuned: str, lora: str, images: Any = None) -> Any:
        with running("images", lora_path="lora", base_model_path="base", tuned_model_path="tuned"):
            report = lbm_lora.validate(
                files.path_of("diffusion_models", base),
                files.path_of("diffusion_models", tuned),
                files.path_of("loras", lora),
                images=None if images is None else cast(Any, files.as_photos(images)),
                device=files.device(),
                progress=NodeProgress(),
            )
            summary, heat = short_text(report), files.as_batch([error_image(report.weights.rows)])
            return io.NodeOutput(heat, summary, ui=ui.PreviewText(summary))


class Fuse(_ReadsFiles):
    """Add a LoRA to a checkpoint's weights and write the result. What is saved in diffusion_models/ is listed by
    Load LBM Model.
    """

    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            cls,
            "Fuse LBM LoRA",
            [
                _checkpoint("checkpoint", "The checkpoint that the LoRA was made for."),
                _lora_file(),
                _strength(),
                _text("filename_prefix", "diffusion_models/lbm", _PREFIX),
            ],
            io.String.Output(display_name="path"),
            writes=True,
        )

    @classmethod
    def execute(cls, checkpoint: str, lora: str, strength: float, filename_prefix: str) -> Any:
        with running(base_model_path="checkpoint", lora_path="lora", lora_scale="strength"):
            path, base = files.new_path(filename_prefix), files.path_of("diffusion_models", checkpoint)
            adapter = files.path_of("loras", lora)
            lbm_lora.fuse(base, adapter, save_to=path, lora_scale=strength, progress=NodeProgress())
            return _said(path)


class OpenLora(_ReadsFiles):
    """Open a LoRA file to merge it, resize it, or save it in another format."""

    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            cls,
            "Open LBM LoRA",
            [_lora_file()],
            _LORA.Output(display_name="LBM_LORA"),
        )

    @classmethod
    def execute(cls, lora: str) -> Any:
        with running():
            return io.NodeOutput(load_adapter(files.path_of("loras", lora)))


class Merge(io.ComfyNode):
    """Merge two LoRAs into one that does what both do together. Chain nodes to merge more."""

    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            cls,
            "Merge LBM LoRAs",
            [
                _LORA.Input("lora", tooltip="The first LoRA."),
                _LORA.Input("lora2", tooltip="The second LoRA."),
                _text(
                    "scales",
                    "1 1",
                    "A scale for each LoRA, separated by a space. By layer: 0.8,down_blocks=0.5,attn1=0.",
                ),
                _choice(
                    "method",
                    get_args(MergeMethod),
                    "Add the LoRAs up (sum), or let them interfere less: ties, dare, knots, core.",
                ),
            ],
            _LORA.Output(display_name="LBM_LORA"),
        )

    @classmethod
    def execute(cls, lora: Adapter, lora2: Adapter, scales: str, method: MergeMethod) -> Any:
        with running("method", lora_path="lora", lora_scale="scales"):
            scale = tuple(scales.split()) or 1.0
            merged = lbm_lora.merge([lora, lora2], lora_scale=scale, method=method, progress=NodeProgress())
            return io.NodeOutput(merged)


class Resize(io.ComfyNode):
    """Give a LoRA a lower rank or a smaller file. It needs no checkpoint."""

    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            cls,
            "Resize LBM LoRA",
            [
                _LORA.Input("lora", tooltip="The LoRA to resize."),
                _rank("rank", 16, "Rank of linear layers. Convolutions get half of it."),
                _text("max_size", "", _MAX_SIZE),
            ],
            _LORA.Output(display_name="LBM_LORA"),
        )

    @classmethod
    def execute(cls, lora: Adapter, rank: int, max_size: str = "") -> Any:
        ranks: dict[str, Any] = {"max_size": max_size.strip()} if max_size.strip() else {"rank": rank}
        with running("rank", "max_size", lora_path="lora"):
            return io.NodeOutput(lbm_lora.resize(lora, progress=NodeProgress(), **ranks))


class Save(io.ComfyNode):
    """Write a LoRA to ComfyUI's output folder, for lbm-lora or another program. What is saved in loras/ is listed by
    the LoRA loaders.
    """

    @classmethod
    def define_schema(cls) -> Any:
        return _schema(
            cls,
            "Save LBM LoRA",
            [
                _LORA.Input("lora", tooltip="The LoRA to save."),
                _text("filename_prefix", "loras/lbm", _PREFIX),
                _choice(
                    "format",
                    get_args(FormatName),
                    "native for these nodes and lbm-lora; comfyui for ComfyUI's own LoRA loaders; the others "
                    "for the programs of those names. peft makes a folder.",
                ),
                _choice(
                    "biases",
                    ["keep", "lora_bias", "drop"],
                    "Changes of biases, for a format that cannot hold them: keep is then an error, lora_bias "
                    "writes them as PEFT has them, drop leaves them out.",
                ),
                _choice(
                    "norms",
                    ["keep", "drop"],
                    "Changes of norms, for a format that cannot hold them: keep is then an error, drop leaves "
                    "them out.",
                ),
            ],
            io.String.Output(display_name="path"),
            writes=True,
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
        with running("biases", "norms"):
            path = files.new_path(filename_prefix, "" if format == "peft" else ".safetensors")
            return _said(lora.save(path, format, biases=biases, norms=norms))


class LbmLoraExtension(ComfyExtension):
    """The nodes of lbm-lora."""

    async def get_node_list(self) -> list[Any]:
        """Return the node classes."""
        models = [LoadModel, LoadLora, ApplyLora, Translate]
        return [*models, Extract, Calibrate, Validate, Fuse, OpenLora, Merge, Resize, Save]


async def comfy_entrypoint() -> LbmLoraExtension:
    """Return the extension; ComfyUI finds this function in the pack's `__init__.py`."""
    return LbmLoraExtension()
