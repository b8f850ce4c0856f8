"""The pictures of base, base + LoRA and tuned on equal latents: what `validate --images` measures."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from lbm_lora.adapter import Adapter
from lbm_lora.apply import ScaledAdapter, fuse_module
from lbm_lora.imaging.files import read_image
from lbm_lora.imaging.grids import comparison_grid
from lbm_lora.imaging.paths import expand_sources
from lbm_lora.imaging.tensors import to_images
from lbm_lora.infer.comparison import VariantOutputs, compare_outputs, variant_outputs
from lbm_lora.infer.pipeline import Images, check_steps, encode_sources, to_model_size
from lbm_lora.model.build import LBMModel, load_model
from lbm_lora.naming import ParamName
from lbm_lora.progress import SILENT, Progress
from lbm_lora.report import OutputComparison

_PICTURES = 8  # rows of the comparison picture


def compare_pictures(
    *,
    base: Path,
    tuned: Path,
    adapter: Adapter,
    images: str,
    steps: int,
    seed: int,
    size: int | None,
    device: str,
    dtype: torch.dtype,
    config_path: Path | None = None,
    progress: Progress = SILENT,
) -> tuple[OutputComparison, bytes]:
    """Run all three on the base's latents, one model in memory at a time.

    Args:
        images: picture, folder or glob.
        size: square root of the pixel budget; by default the model's own.

    Returns:
        The scores, and a PNG file: source, base, base + LoRA, tuned side by side.

    Raises:
        InputError: of the kind that fits; see `lbm_lora.errors`.
    """

    def load(path: Path) -> LBMModel:
        return load_model(path, config_path=config_path, device=device, dtype=dtype)

    def run(model: LBMModel) -> VariantOutputs:
        return variant_outputs(model, latents, steps=steps, seed=seed, progress=progress)

    sources = expand_sources(images)
    model = load(base)
    check_steps(model.config, steps)
    stretched = [to_model_size(model, read_image(source), size=size) for source in sources]
    latents = [encode_sources(model, image, seed=seed) for image in stretched]
    progress.start(3 * len(sources), "comparing outputs")
    outputs = {"base": run(model)}
    fuse_module(model.denoiser, [ScaledAdapter(adapter.filtered(_params_of(model).__contains__))])
    outputs["base + LoRA"] = run(model)
    device_name = str(model.device)
    del model  # so that the tuned one does not stand beside it in memory
    outputs["tuned"] = run(load(tuned))
    names = [source.name for source in sources]
    scores = compare_outputs(
        outputs, names=names, reference="tuned", steps=steps, seed=seed, dtype=dtype, device=device_name
    )
    return scores, _picture(stretched, outputs)


def _params_of(model: LBMModel) -> set[ParamName]:
    return {ParamName(name) for name, _ in model.denoiser.named_parameters()}


def _picture(images: Sequence[Images], outputs: Mapping[str, VariantOutputs]) -> bytes:
    """PNG bytes: source | base | base + LoRA | tuned, one row per image."""
    rows = [
        [to_images(tensor)[0] for tensor in (image, *(made.images[index][None] for made in outputs.values()))]
        for index, image in enumerate(images[:_PICTURES])
    ]
    buffer = io.BytesIO()
    comparison_grid(["source", *outputs], rows).save(buffer, "PNG")
    return buffer.getvalue()
