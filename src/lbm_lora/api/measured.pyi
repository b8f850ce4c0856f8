"""Made by tools/write_api_stubs.py of the functions and their configs; not to be edited."""

from collections.abc import Sequence
from lbm_lora.api.adapters import RefinedAdapter
from lbm_lora.api.values import Images
from lbm_lora.api.values import LoraLike
from lbm_lora.checkpoint import CheckpointLike
from lbm_lora.progress import Progress
from lbm_lora.report import Report
from pathlib import Path
from typing import Literal
import torch

def validate(
    base: CheckpointLike,
    tuned: CheckpointLike,
    lora: LoraLike,
    *,
    images: Images | None = None,
    other_lora_path: LoraLike | Sequence[LoraLike] = (),
    report: Path | str | None = None,
    overwrite: bool = False,
    num_inference_steps: int | Sequence[int] = (),
    size: int | None = None,
    device: str = 'auto',
    exclude: str | Sequence[str] = (),
    lpips_weights: Path | str | None = None,
    lpips_net: Literal['vgg', 'alex', 'squeeze'] | None = None,
    seed: int = 0,
    torch_dtype: Literal['float', 'fp16', 'bf16'] | torch.dtype = 'float',
    lora_alpha_is: Literal['auto', 'rank', 'file'] = 'auto',
    config_path: Path | str | None = None,
    allow_other_base: bool = False,
    allow_unmatched: bool = False,
    progress: Progress = ...,
) -> Report:
    """Compare base + LoRA with the tuned checkpoint, in weights and, with `images`, in images.

    Args:
        base: the checkpoint that the LoRA is relative to: a path, an open checkpoint or a state dict.
        tuned: the fine-tuned checkpoint, likewise.
        lora: the LoRA: a path or an adapter.
        images: also compare the outputs of base, base + LoRA and tuned on them.
        other_lora_path: further LoRAs to measure on `images`: paths or adapters.
        report: folder for report.txt, report.json, report.html and lora_layer_names.txt. None: nothing is written.
        progress: a listener.
        overwrite: Replace existing files at the output paths, even if lbm-lora did not write them; inputs are never
            replaced.
        num_inference_steps: Calls of the denoiser per image, one number or several. Default: those the model was
            trained for (1 2 4).
        size: Run images at this size: the square root of the pixel budget (1024: about one megapixel). Default: the
            model's own.
        device: Run images on this device: auto (CUDA if available, else the CPU), cpu, cuda, cuda:N or mps.
        exclude: Leave these tensors out of the comparison: part of a name, a glob, or re:REGEX.
        lpips_weights: Also measure LPIPS on images, with this file of VGG16, AlexNet or SqueezeNet (torchvision's
            names).
        lpips_net: Also measure LPIPS on images, with this network. Default: the one in lpips_weights. Without that
            file, torchvision downloads the weights.
        seed: Seed for the bridge noise.
        torch_dtype: Run images in this precision.
        lora_alpha_is: Meaning of alpha in a LoRA file: rank ignores it (scaling 1), file uses it. auto: rank for
            files of the earlier implementation, else file.
        config_path: Read LBM's config.yaml from here, for checkpoints that have none in them or next to them.
        allow_other_base: Continue even if the LoRA was made from another base.
        allow_unmatched: Continue even if keys of the LoRA match nothing.

    Returns:
        What was measured: `weights`, and with `images` also `outputs`.

    Raises:
        InputError: invalid input of any kind; see `lbm_lora.errors`.
    """
    ...

def refine(
    base: CheckpointLike,
    tuned: CheckpointLike,
    lora: LoraLike,
    images: Images,
    *,
    held_images: Images | None = None,
    save_to: Path | str | None = None,
    overwrite: bool = False,
    method: Literal['adam', 'joint'] = 'adam',
    steps: int | None = None,
    batch_size: int = 16,
    size: int | None = None,
    device: str = 'auto',
    learning_rate: float = 0.04,
    mirror: bool = True,
    timesteps: float | Sequence[float] = (),
    seed: int = 0,
    save_precision: Literal['float', 'fp16', 'bf16', 'int8'] | torch.dtype | None = None,
    torch_dtype: Literal['float', 'bf16'] | torch.dtype = 'float',
    lora_alpha_is: Literal['auto', 'rank', 'file'] = 'auto',
    config_path: Path | str | None = None,
    progress: Progress = ...,
) -> RefinedAdapter:
    """Train a LoRA on the tuned model's own outputs on images, keeping its ranks; the better one is kept.

    Args:
        base: the checkpoint that the LoRA was made for: a path, an open checkpoint or a state dict.
        tuned: the fine-tuned checkpoint whose outputs it is trained on, likewise.
        lora: the LoRA to refine, a path or an adapter; the best start is a calibrated extraction.
        images: two or more sources of the kind that the model is used on, the more the better.
        held_images: other images to measure on. None: one in 8 of the images, up to 16, which are not learnt from.
        save_to: write the refined LoRA to this path. A state next to it, until it is there, lets a run that was stopped
            go on. None: nothing is written.
        progress: a listener.
        overwrite: Replace existing files at the output paths, even if lbm-lora did not write them; inputs are never
            replaced.
        method: Train everything with Adam (adam), or fit only biases, norms and one factor per rank together, in a
            few steps of Gauss and Newton (joint): quicker, with less gain, and nothing to install.
        steps: Steps of the method. Default: 200 of Adam, at most 6 of the joint fit.
        batch_size: Points of the bridge per step. They pass through the network together: use 1 or 2 for the
            full-size model.
        size: Work at this size: the square root of the pixel budget (1024: about one megapixel). Default: the
            model's own.
        device: Run on this device: auto (CUDA if available, else the CPU), cpu, cuda or cuda:N.
        learning_rate: Learning rate of Adam, relative to the root mean square of each tensor's values times the
            error of the given LoRA.
        mirror: Also train on mirrored images.
        timesteps: Train only at these of the trained timesteps. Default: all of them, drawn by their probability.
        seed: Seed for the bridge noise and the order of the images.
        save_precision: Store the LoRA in this precision. Default: that of the given LoRA.
        torch_dtype: Run the networks in this precision. bf16 cannot see errors below about 1 %.
        lora_alpha_is: Meaning of alpha in the LoRA file: rank ignores it (scaling 1), file uses it. auto: rank for
            files of the earlier implementation, else file.
        config_path: Read LBM's config.yaml from here, for checkpoints that have none in them or next to them.

    Returns:
        The refined LoRA, with its `outcome`.

    Raises:
        MissingExtraError: a package of the train extra is not installed.
        InputError: of the kind that fits, before a model is loaded.
        QualityError: the loss is not finite any more.
    """
    ...
