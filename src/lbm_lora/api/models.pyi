"""Made by tools/write_api_stubs.py of the functions and their configs; not to be edited."""

from collections.abc import Sequence
from lbm_lora.api.values import Images
from lbm_lora.api.values import LoraLike
from lbm_lora.calibration import Statistics
from lbm_lora.checkpoint import CheckpointLike
from lbm_lora.fidelity.network import Run
from lbm_lora.progress import Progress
from lbm_lora.report.inspection import Inspection
from lbm_lora.workflows import layers as layers_workflow
from lbm_lora.workflows.base import BaseResult
from lbm_lora.workflows.infer import InferResult
from pathlib import Path
from torch import Tensor
from torch import nn
from typing import Literal
from typing import overload
import torch

def make_base(
    save_path: Path | str,
    *,
    overwrite: bool = False,
    config_path: Path | str | None = None,
    backbone_signature: str | None = None,
    torch_dtype: Literal['float', 'fp16', 'bf16'] | torch.dtype = 'bf16',
    tuned_model_path: Path | str | None = None,
    test_baseline: bool = False,
    progress: Progress = ...,
) -> BaseResult:
    """Make the exact base from a backbone and LBM's config.yaml, as .safetensors and .ckpt.

    Args:
        save_path: where to write: OUT.ckpt or OUT.safetensors. Both are written.
        progress: a listener.
        overwrite: Replace existing files at the output paths, even if lbm-lora did not write them; inputs are never
            replaced.
        config_path: Read LBM's settings from this config.yaml. Default: those of the published LBM.
        backbone_signature: Make the base from this backbone: a hub id, a diffusers folder or a single SDXL file.
            Default: the one that the config names, else SDXL from the hub.
        torch_dtype: Store the base in this precision. It must be the one that training started from.
        tuned_model_path: Compare the base with this tuned checkpoint, and say whether it can be its base.
        test_baseline: Compare the base with the model.safetensors next to config_path.

    Returns:
        The files and the ledger of the base, and the comparison with `tuned_model_path` where it is given.

    Raises:
        InputError: invalid input of any kind, before anything is written; see `lbm_lora.errors`.
    """
    ...

@overload
def calibrate(
    module: nn.Module,
    run: Run,
    /,
    *,
    names: str | Sequence[str] = (),
    save_to: Path | str | None = None,
    overwrite: bool = False,
    probes: int | None = None,
    seed: int = 0,
    dense_up_to: int = 640,
    sketch_rank: int = 128,
    conv_dense_up_to: int = 2304,
    progress: Progress = ...,
) -> Statistics:
    """Measure which errors a network's output is sensitive to; extract then spends its bytes on those.

    This is `calibrate(module, run)`. Embeddings, grouped convs, nn.MultiheadAttention and shared weights are
    not measured: their changes are stored dense. 1D and 3D convs always are.

    Args:
        module: the tuned network, in evaluation mode, in fp32 or bf16, on any device.
        run: yields the network's output for each sample, with its graph, in any shape:
            `def run(): for batch in data: yield module(**batch).last_hidden_state`. It is called several times and must
            yield the same samples in the same order; the first must call every layer.
        names: measure only these modules: part of a name, a glob, or re:REGEX. None: all linear layers and 2D convs.
        save_to: also write the statistics, a .safetensors file. None: nothing is written.
        progress: a listener.
        overwrite: Replace existing files at the output paths, even if lbm-lora did not write them; inputs are never
            replaced.
        probes: Measure this many random directions of the output per sample. More are slower and more accurate.
            Default: 4 for fewer than 16 samples, else 1.
        seed: Seed for the probes and the sketches.
        dense_up_to: Keep the complete second moment for layer sides up to this width, and a sketch for wider ones.
            Higher: more memory and a larger file.
        sketch_rank: Columns of a sketch. 0: keep only the diagonal.
        conv_dense_up_to: Keep the complete second moment of the in * kh * kw inputs that a conv's kernel covers up
            to this many, and a sketch for more. 0: moments of the channels only, in a smaller file.

    Returns:
        The statistics, for `extract(base, tuned, calibration=...)` with modules or their state dicts.

    Raises:
        InputError: invalid input of any kind; see `lbm_lora.errors`.
    """
    ...

@overload
def calibrate(
    tuned: CheckpointLike,
    images: Images,
    *,
    save_to: Path | str | None = None,
    overwrite: bool = False,
    count: int | None = None,
    size: int | None = None,
    device: str = 'auto',
    timesteps: float | Sequence[float] = (),
    probes: int | None = None,
    seed: int = 0,
    dense_up_to: int = 640,
    sketch_rank: int = 128,
    conv_dense_up_to: int = 2304,
    torch_dtype: Literal['float', 'bf16'] | torch.dtype = 'bf16',
    config_path: Path | str | None = None,
    progress: Progress = ...,
) -> Statistics:
    """Measure on images which errors a tuned model's output is sensitive to; extract then spends its bytes on those.

    `calibrate(module, run, names=...)` measures any network: a module, and a callable that runs it over samples.

    Args:
        tuned: the fine-tuned checkpoint: a path, an open checkpoint or a state dict.
        images: sources of the kind that the model is used on.
        save_to: also write the statistics, a .safetensors file; a run that was stopped goes on where its sums were
            last saved, beside it. None: nothing is written.
        progress: a listener.
        overwrite: Replace existing files at the output paths, even if lbm-lora did not write them; inputs are never
            replaced.
        count: Use only this many images, evenly spread over the sorted list. Default: all of them.
        size: Work at this size: the square root of the pixel budget (1024: about one megapixel). Default: the
            model's own.
        device: Run on this device: auto (CUDA if available, else the CPU), cpu, cuda or cuda:N.
        timesteps: Measure only at these of the trained timesteps. Default: all of them, weighted by their
            probability.
        probes: Measure this many random directions of the output per image and timestep. More are slower and more
            accurate. Default: 4 for fewer than 16 images, else 1.
        seed: Seed for the bridge noise, the probes and the sketches.
        dense_up_to: Keep the complete second moment for layer sides up to this width, and a sketch for wider ones.
            Higher: more memory and a larger file.
        sketch_rank: Columns of a sketch. 0: keep only the diagonal.
        conv_dense_up_to: Keep the complete second moment of the in * kh * kw inputs that a conv's kernel covers up
            to this many, and a sketch for more. 0: moments of the channels only, in a smaller file.
        torch_dtype: Run the networks in this precision. Sums are always fp32.
        config_path: Read LBM's config.yaml from here, for a checkpoint that has none in it or next to it.

    Returns:
        The statistics, for `extract(..., calibration=...)`.

    Raises:
        InputError: invalid input of any kind; see `lbm_lora.errors`.
    """
    ...

def layers(
    model: CheckpointLike,
    patterns: str | Sequence[str] = (),
    *,
    rank: int = 32,
    conv_rank: int | None = None,
) -> layers_workflow.LayersResult:
    """List the layers that a LoRA can hold, or those that patterns select, and the size of a LoRA of them.

    Args:
        model: a checkpoint, base or tuned: a path, an open one or a state dict.
        patterns: part of a name, a glob, or re:REGEX; one or several. None: every layer.
        rank: Rank of linear layers, for the size.
        conv_rank: Rank of conv layers, for the size. Default: half of the rank.

    Returns:
        The selected `layers`, and sums over them.

    Raises:
        InputError: the checkpoint cannot be read, or a pattern matches nothing.
    """
    ...

def inspect(
    file: CheckpointLike,
    other: CheckpointLike | None = None,
    *,
    base: CheckpointLike | None = None,
    report: Path | str | None = None,
    overwrite: bool = False,
    lora_alpha_is: Literal['auto', 'rank', 'file'] = 'auto',
    progress: Progress = ...,
) -> Inspection:
    """Say what a file is, LoRA or checkpoint, or how two files differ.

    Args:
        file: the file: a path, an open one or a state dict.
        other: a second file to compare it with.
        base: also check whether the LoRA was made from this checkpoint, and fits it.
        report: folder for inspect.html. None: nothing is written.
        progress: a listener.
        overwrite: Replace existing files at the output paths, even if lbm-lora did not write them; inputs are never
            replaced.
        lora_alpha_is: Meaning of alpha in a LoRA file: rank ignores it (scaling 1), file uses it. auto: rank for
            files of the earlier implementation, else file.

    Returns:
        The facts of `file` and of `other`, and their `difference` or `fit`.

    Raises:
        InputError: a file cannot be read; see `lbm_lora.errors`.
    """
    ...

def fuse(
    base: CheckpointLike,
    lora: LoraLike | Sequence[LoraLike],
    *,
    save_to: Path | str | None = None,
    overwrite: bool = False,
    lora_scale: float | str | Sequence[float | str] = (1.0,),
    lora_alpha_is: Literal['auto', 'rank', 'file'] = 'auto',
    crop: bool = False,
    allow_other_base: bool = False,
    allow_unmatched: bool = False,
    progress: Progress = ...,
) -> dict[str, Tensor]:
    """Add LoRAs to a checkpoint's weights.

    Args:
        base: the checkpoint that the LoRAs were made for: a path, an open one or a state dict. It is not changed.
        lora: one LoRA or several, all added: paths or adapters.
        save_to: write the result tensor by tensor, as .safetensors or .ckpt. None: it is made in memory.
        progress: a listener.
        overwrite: Replace existing files at the output paths, even if lbm-lora did not write them; inputs are never
            replaced.
        lora_scale: Scale of each LoRA, or one for all: 0 is the base, 1 the LoRA as it was made; may be negative.
            By layer: 0.8,down_blocks=0.5,attn1=0 is 0.8, but 0.5 where down_blocks matches a name, and 0 where
            attn1 does (the last match counts). A pattern is part of a name, a glob, or re:REGEX.
        lora_alpha_is: Meaning of alpha in a LoRA file: rank ignores it (scaling 1), file uses it. auto: rank for
            files of the earlier implementation, else file.
        crop: Crop the attn2 keys and values of a LoRA made for SDXL to their first columns, as the exact base does.
            Default: leave them out, because an LBM's attn2 sees the image, not text.
        allow_other_base: Continue even if a LoRA was made from another base.
        allow_unmatched: Continue even if keys of a LoRA match nothing in the checkpoint.

    Returns:
        Every tensor of the checkpoint by its key; with `save_to` they are views of the file.

    Raises:
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    ...

def infer(
    base: CheckpointLike,
    images: Images,
    output_path: Path | str,
    lora: LoraLike | Sequence[LoraLike] = (),
    *,
    mask: Images | None = None,
    tuned: CheckpointLike | None = None,
    overwrite: bool = False,
    lora_scale: float | str | Sequence[float | str] = (1.0,),
    lora_alpha_is: Literal['auto', 'rank', 'file'] = 'auto',
    crop: bool = False,
    num_inference_steps: int = 1,
    seed: int = 0,
    size: int | None = None,
    keep_detail: float = 0.0,
    match_color: float = 0.0,
    mode: Literal['fused', 'live'] = 'fused',
    device: str = 'auto',
    torch_dtype: Literal['float', 'fp16', 'bf16'] | torch.dtype = 'bf16',
    sample_posterior: bool = False,
    vae_tiling: Literal['auto', 'on', 'off'] = 'auto',
    attention_only: bool = False,
    allow_other_base: bool = False,
    allow_unmatched: bool = False,
    config_path: Path | str | None = None,
    compare: bool = False,
    save_input: bool = False,
    skip_existing: bool = False,
    fail_fast: bool = False,
    progress: Progress = ...,
) -> InferResult:
    """Translate images with an LBM checkpoint and any number of LoRAs, and write the results.

    Args:
        base: the checkpoint that the LoRAs were made for, or any LBM: a path, an open checkpoint or a state dict.
        images: images to translate. PIL images are named image-1.png and so on.
        output_path: file to write, or a folder; several images need a folder. The format follows the extension.
        lora: LoRAs, all applied together: paths or adapters. None: the checkpoint as it is.
        mask: a mask, or a folder with one of each image's name, or one for each image: white takes the result, black
            keeps the source.
        tuned: the fully fine-tuned checkpoint, for the last column of `compare`.
        progress: a listener.
        overwrite: Replace existing files at the output paths, even if lbm-lora did not write them; inputs are never
            replaced.
        lora_scale: Scale of each LoRA, or one for all: 0 is the base, 1 the LoRA as it was made; may be negative.
            By layer: 0.8,down_blocks=0.5,attn1=0 is 0.8, but 0.5 where down_blocks matches a name, and 0 where
            attn1 does (the last match counts). A pattern is part of a name, a glob, or re:REGEX.
        lora_alpha_is: Meaning of alpha in a LoRA file: rank ignores it (scaling 1), file uses it. auto: rank for
            files of the earlier implementation, else file.
        crop: Crop the attn2 keys and values of a LoRA made for SDXL to their first columns, as the exact base does.
            Default: leave them out, because an LBM's attn2 sees the image, not text.
        num_inference_steps: Calls of the denoiser per image. Published LBMs are trained for 1, 2 and 4.
        seed: Seed for the noise between steps. An image's result depends on the seed alone, not on other images in
            the run.
        size: Work at this size: the square root of the pixel budget (1024: about one megapixel). Default: the
            model's own.
        keep_detail: Put this share of the source's fine detail into the result: 0 leaves it as the model makes it,
            1 replaces all of the result's detail.
        match_color: Move the result's colours to the source's by this share: 1 gives each channel the mean and
            spread that it has in the source.
        mode: Add the LoRAs to the weights once (fused: steps cost nothing extra), or compute them in every step
            (live).
        device: Run on this device: auto (CUDA if available, else the CPU), cpu, cuda, cuda:N or mps (untested).
        torch_dtype: Run the networks in this precision.
        sample_posterior: Sample the VAE's posterior, as LBM's own inference does, instead of taking its mean.
        vae_tiling: Decode in overlapping tiles, which takes less memory. auto: if a side has more than 1024 pixels.
        attention_only: Apply only the part of the LoRAs whose keys contain attn1.to or attn2.to.
        allow_other_base: Continue even if a LoRA was made from another base.
        allow_unmatched: Continue even if keys of a LoRA match nothing in the model.
        config_path: Read LBM's config.yaml from here, for a checkpoint that has none in it or next to it.
        compare: Also write NAME_compare: source, base, with LoRA and tuned side by side.
        save_input: Also write NAME_input: the source as it was read, next to its result. Other files of that name
            are kept.
        skip_existing: Skip images whose output already exists, even from other settings. With new settings, use
            another folder.
        fail_fast: Stop at the first image that fails. Default: continue, and list the failed images at the end.

    Returns:
        The files that were written, and what of each LoRA was applied.

    Raises:
        InputError: invalid input of any kind; see `lbm_lora.errors`.
    """
    ...
