"""Made by tools/write_api_stubs.py of the functions and their configs; not to be edited."""

from collections.abc import Sequence
from lbm_lora.api.adapters import MeasuredAdapter
from lbm_lora.api.values import Images
from lbm_lora.api.values import NetworkLike
from lbm_lora.calibration import Statistics
from lbm_lora.fidelity.network import Run
from lbm_lora.progress import Progress
from lbm_lora.workflows.compress import CompressResult
from pathlib import Path
from typing import Literal
import torch

def extract(
    base: NetworkLike,
    tuned: NetworkLike,
    *,
    save_to: Path | str | None = None,
    calibration: Path | str | Statistics | None = None,
    calibration_images: Images | None = None,
    images: Images | None = None,
    run: Run | None = None,
    overwrite: bool = False,
    rank: int = 32,
    conv_rank: int | None = None,
    max_size: str | Sequence[str] = (),
    max_error: float | None = None,
    max_output_error: float | None = None,
    min_psnr: float | None = None,
    keep_energy: float | None = None,
    max_module_error: float | None = None,
    refit: bool = True,
    check: bool = True,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    target_coverage: Literal['full', 'attention', 'extended'] = 'full',
    dense: bool = True,
    save_precision: Literal['auto', 'float', 'fp16', 'bf16', 'int8'] | torch.dtype | None = None,
    min_diff: float = 0.0,
    device: str = 'auto',
    config_path: Path | str | None = None,
    progress: Progress = ...,
) -> MeasuredAdapter:
    """Extract a LoRA: the change of a fine-tune, matrices as low-rank factors, biases and norms dense.

    Args:
        base: the checkpoint that the tuned one started from: a path, an open checkpoint, a state dict or a module.
        tuned: the fine-tuned checkpoint, likewise.
        save_to: also write the LoRA, a .safetensors file, and its sidecar while it is extracted: the bytes of
            `lbm-lora extract`. Its tensors then stay in the file, which takes less memory. None: nothing is written.
        calibration: statistics of the tuned model, from `calibrate` or its file: least error of the model's output
            instead of the weights.
        calibration_images: images to make those statistics of first; they are not kept.
        images: images to run a calibrated LoRA on: their PSNR to the tuned model's one-step images.
        run: the callable that `tuned`, a module of any network, was calibrated with: LoRAs are then run on its held-out
            samples. The module's weights are replaced meanwhile, and put back.
        progress: a listener.
        overwrite: Replace existing files at the output paths, even if lbm-lora did not write them; inputs are never
            replaced.
        rank: Rank of linear layers. 9999: as high as each matrix allows.
        conv_rank: Rank of conv layers. Default: half of the rank, 16 for 32; full for 9999.
        max_size: Choose the ranks of all layers together: the best LoRA that a file of this size can hold (200MB).
        max_error: Write the smallest file whose total relative error of the weights is at most this: above 0, up to
            1 (0.3: 30 %). Not with calibration.
        max_output_error: Write the smallest file whose relative error of the denoiser's output is at most this:
            above 0, up to 10 (0.05: 5 %). Needs calibration.
        min_psnr: Write the smallest file with which each of images, else of calibration_images, reaches this PSNR
            (dB) to the tuned model's one-step image. Needs calibration.
        keep_energy: Give each layer the rank that keeps this share of its energy: above 0, up to 1 (0.95: 95 %).
        max_module_error: Give each layer the rank that keeps its relative error at or below this: above 0, up to 1
            (0.3: 30 %).
        refit: With calibration_images: then fit biases, norms and one factor per rank together to the tuned model's
            outputs on these images, and keep the result if it is better on images that were held out. About a
            minute for a small network; on a CPU not done for the full-size model.
        check: Run a calibrated LoRA at the check points in the statistics, in fp32, and correct the predicted error
            with the result.
        include: Extract only tensors that match one of these patterns: part of a name, a glob, or re:REGEX.
            Default: all.
        exclude: Leave out tensors that match one of these patterns. Takes precedence over include.
        target_coverage: Extract these layers: all of them (full), only attn1 and attn2 (attention), or also
            feed-forward and projections (extended).
        dense: Keep the changes of biases and norms as dense deltas.
        save_precision: Store the LoRA in this precision. auto gives each rank, bias and norm the bits that it is
            worth, for a size or an error. Default: bf16; with calibration auto, or fp16 if ranks are given. Only
            lbm-lora reads auto and int8: `lbm-lora convert` makes files for other programs.
        min_diff: Leave out tensors whose largest change is below this. The ledger lists them.
        device: Decompose matrices on this device: auto (CUDA if available, else the CPU), cpu, cuda or cuda:N.
        config_path: LBM's config.yaml for create_base_model. Default: the one next to the tuned checkpoint.

    Returns:
        The LoRA, with its `report`.

    Raises:
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    ...

def extract_several(
    base: NetworkLike,
    tuned: NetworkLike,
    *,
    save_to: Path | str | None = None,
    calibration: Path | str | Statistics | None = None,
    calibration_images: Images | None = None,
    images: Images | None = None,
    run: Run | None = None,
    overwrite: bool = False,
    rank: int = 32,
    conv_rank: int | None = None,
    ranks: int | Sequence[int] = (),
    max_size: str | Sequence[str] = (),
    max_error: float | None = None,
    max_output_error: float | None = None,
    min_psnr: float | None = None,
    keep_energy: float | None = None,
    max_module_error: float | None = None,
    refit: bool = True,
    check: bool = True,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    target_coverage: Literal['full', 'attention', 'extended'] = 'full',
    dense: bool = True,
    save_precision: Literal['auto', 'float', 'fp16', 'bf16', 'int8'] | torch.dtype | None = None,
    min_diff: float = 0.0,
    device: str = 'auto',
    config_path: Path | str | None = None,
    progress: Progress = ...,
) -> list[MeasuredAdapter]:
    """Extract several LoRAs in one pass: one for each of `ranks`, or of the sizes in `max_size`.

    Args:
        base, tuned, save_to, calibration, calibration_images, images, run, progress: see `extract`.
        overwrite: Replace existing files at the output paths, even if lbm-lora did not write them; inputs are never
            replaced.
        rank: Rank of linear layers. 9999: as high as each matrix allows.
        conv_rank: Rank of conv layers. Default: half of the rank, 16 for 32; full for 9999.
        ranks: Write several LoRAs in one pass, one for each of these ranks of linear layers: LORA_r16.safetensors
            and so on. The conv rank of each is half of its rank, or conv_rank for all.
        max_size: Choose the ranks of all layers together: the best LoRA that a file of this size can hold (200MB,
            800KB). Several sizes give several LoRAs: LORA_200MB.safetensors and so on.
        max_error: Write the smallest file whose total relative error of the weights is at most this: above 0, up to
            1 (0.3: 30 %). Not with calibration.
        max_output_error: Write the smallest file whose relative error of the denoiser's output is at most this:
            above 0, up to 10 (0.05: 5 %). Needs calibration.
        min_psnr: Write the smallest file with which each of images, else of calibration_images, reaches this PSNR
            (dB) to the tuned model's one-step image. Needs calibration.
        keep_energy: Give each layer the rank that keeps this share of its energy: above 0, up to 1 (0.95: 95 %).
        max_module_error: Give each layer the rank that keeps its relative error at or below this: above 0, up to 1
            (0.3: 30 %).
        refit: With calibration_images: then fit biases, norms and one factor per rank together to the tuned model's
            outputs on these images, and keep the result if it is better on images that were held out. About a
            minute for a small network; on a CPU not done for the full-size model.
        check: Run a calibrated LoRA at the check points in the statistics, in fp32, and correct the predicted error
            with the result.
        include: Extract only tensors that match one of these patterns: part of a name, a glob, or re:REGEX.
            Default: all.
        exclude: Leave out tensors that match one of these patterns. Takes precedence over include.
        target_coverage: Extract these layers: all of them (full), only attn1 and attn2 (attention), or also
            feed-forward and projections (extended).
        dense: Keep the changes of biases and norms as dense deltas.
        save_precision: Store the LoRA in this precision. auto gives each rank, bias and norm the bits that it is
            worth, for a size or an error. Default: bf16; with calibration auto, or fp16 if ranks are given. Only
            lbm-lora reads auto and int8: `lbm-lora convert` makes files for other programs.
        min_diff: Leave out tensors whose largest change is below this. The ledger lists them.
        device: Decompose matrices on this device: auto (CUDA if available, else the CPU), cpu, cuda or cuda:N.
        config_path: LBM's config.yaml for create_base_model. Default: the one next to the tuned checkpoint.

    Returns:
        The LoRAs in the order of their ranks or sizes.

    Raises:
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    ...

def compress(
    tuned: Path | str,
    *,
    images: Images | None = None,
    overwrite: bool = False,
    size: str | None = None,
    output: Path | str | None = None,
    base_model_path: Path | str | None = None,
    backbone_signature: str | None = None,
    device: str = 'auto',
    name: str | None = None,
    calibration: Path | str | None = None,
    count: int = 16,
    save_precision: Literal['auto', 'float', 'fp16', 'bf16', 'int8'] | torch.dtype = 'auto',
    also: Literal['comfyui', 'kohya', 'kohya-diffusers', 'diffusers', 'peft', 'lycoris'] | Sequence[Literal['comfyui', 'kohya', 'kohya-diffusers', 'diffusers', 'peft', 'lycoris']] = (),
    seed: int = 0,
    torch_dtype: Literal['float', 'fp16', 'bf16'] | torch.dtype = 'float',
    progress: Progress = ...,
) -> CompressResult:
    """Make a small LoRA of a fine-tuned model in one step: base, calibration, extraction, and comparison in images.

    All of it is written to the folder `output`: the LoRA, the base, the statistics and the report.

    Args:
        tuned: the fine-tuned checkpoint, or the folder that holds it with its config.yaml.
        images: sources of the kind that the model is used on. Every fourth one is held out to measure on, 8 at most.
            None: the four photos that come with the package.
        progress: a listener.
        overwrite: Replace existing files at the output paths, even if lbm-lora did not write them; inputs are never
            replaced.
        size: Largest size of the LoRA file (50MB, 800KB). Default: a fiftieth of the tuned checkpoint's size.
        output: Write everything to this folder. Default: NAME_lora in the current folder.
        base_model_path: The base. Default: the exact_base.safetensors in the output folder, or next to the tuned
            checkpoint if that is given as a file. If there is none, it is made.
        backbone_signature: Make the base from this backbone: hub id, folder or file. Default: that of config.yaml,
            else SDXL on the hub.
        device: Run on this device: auto (CUDA if available, else the CPU), cpu, cuda or cuda:N.
        name: Name of the LoRA: NAME_lora.safetensors. Default: the checkpoint's name, or the folder's of a
            model.safetensors.
        calibration: Reuse these statistics of an earlier run (calibration.safetensors in its folder) to make
            another size without measuring again. images are then used only for the comparison.
        count: Calibrate on at most this many images, evenly spread over the given ones.
        save_precision: Precision of the LoRA file. auto gives each rank, bias and norm the bits that it is worth.
            Only lbm-lora reads auto and int8: also and `lbm-lora convert` make files for other programs.
        also: Also write the LoRA in these formats, next to the native file: NAME.comfyui.safetensors, and so on.
            What a format cannot hold is left out there, with a warning.
        seed: Seed for the bridge noise.
        torch_dtype: Precision of the networks in the comparison. Below float, their rounding hides small
            differences.

    Returns:
        The LoRA, how close it comes to the tuned model, and where everything lies.

    Raises:
        InputError: invalid input of any kind; see `lbm_lora.errors`.
    """
    ...
