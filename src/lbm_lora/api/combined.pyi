"""Made by tools/write_api_stubs.py of the functions and their configs; not to be edited."""

from collections.abc import Sequence
from lbm_lora.api.adapters import CombinedAdapter
from lbm_lora.api.adapters import ResizedAdapter
from lbm_lora.api.values import Images
from lbm_lora.api.values import LoraLike
from lbm_lora.calibration import Statistics
from lbm_lora.checkpoint import CheckpointLike
from lbm_lora.progress import Progress
from pathlib import Path
from typing import Literal
import torch

def merge(
    loras: LoraLike | Sequence[LoraLike],
    *,
    save_to: Path | str | None = None,
    calibration: Path | str | Statistics | None = None,
    images: Images | None = None,
    base: CheckpointLike | None = None,
    tuned: CheckpointLike | None = None,
    overwrite: bool = False,
    lora_scale: float | str | Sequence[float | str] = (1.0,),
    rank: int | None = None,
    conv_rank: int | None = None,
    max_size: str | None = None,
    max_error: float | None = None,
    max_output_error: float | None = None,
    exact: bool = False,
    method: Literal['sum', 'ties', 'dare', 'knots', 'core'] = 'sum',
    density: float | None = None,
    seed: int = 0,
    save_precision: Literal['float', 'fp16', 'bf16', 'int8'] | torch.dtype | None = None,
    allow_other_base: bool = False,
    lora_alpha_is: Literal['auto', 'rank', 'file'] = 'auto',
    device: str = 'auto',
    config_path: Path | str | None = None,
    progress: Progress = ...,
) -> CombinedAdapter:
    """Merge LoRAs into one that does what all of them do together.

    Args:
        loras: the LoRAs, in any order: paths or adapters.
        save_to: write the LoRA, a .safetensors file, while it is merged; its tensors then stay in the file. None:
            nothing is written.
        calibration: statistics of a tuned model, from `calibrate` or its file: what is lost is weighed by that model's
            output. Needs `rank`, `max_size` or `max_output_error`.
        images: first fit the scales on these images, to the output of `tuned`.
        base: the checkpoint that the LoRAs were made for, to fit the scales: a path, an open checkpoint or a state
            dict.
        tuned: the fine-tuned checkpoint to come close to, likewise.
        progress: a listener.
        overwrite: Replace existing files at the output paths, even if lbm-lora did not write them; inputs are never
            replaced.
        lora_scale: Scale of each LoRA, or one for all: a LoRA merged at 0.5 acts as it does alone at 0.5; may be
            negative. By layer: 0.8,down_blocks=0.5,attn1=0.
        rank: Highest rank of linear layers. Default: as high as the LoRAs need together.
        conv_rank: Highest rank of conv layers. Default: half of rank.
        max_size: Choose the ranks of all layers together: the best LoRA that a file of this size can hold (200MB,
            800KB).
        max_error: Write the smallest file whose total relative error is at most this: above 0, up to 1 (0.02: 2 %).
        max_output_error: Write the smallest file whose relative error of the denoiser's output is at most this:
            above 0, up to 10 (0.05: 5 %). Needs calibration.
        exact: Put the factors side by side, in fp32, without a decomposition: the ranks add up.
        method: Add the LoRAs up (sum), or let them interfere less: ties keeps the largest entries and the majority
            sign, dare drops entries at random, knots is ties in the LoRAs' common directions, core makes their
            directions orthogonal.
        density: Share of the entries that ties, dare and knots keep of each LoRA. Default: 0.5.
        seed: Seed for the entries that dare drops.
        save_precision: Store the LoRA in this precision. Default: that of the LoRAs; float where they differ, and
            for exact.
        allow_other_base: Continue even if the LoRAs were made from different bases. The result counts as made from
            the first one's.
        lora_alpha_is: Meaning of alpha in the LoRA files: rank ignores it (scaling 1), file uses it. auto: rank for
            files of the earlier implementation, else file.
        device: Run the networks on this device to fit the scales: auto (CUDA if available, else the CPU), cpu, cuda
            or cuda:N.
        config_path: Read LBM's config.yaml from here, to fit the scales of checkpoints that have none in them or
            next to them.

    Returns:
        The LoRA, with its `relative_error`.

    Raises:
        WrongBaseError: the LoRAs have different bases that no chain of tuned checkpoints connects.
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    ...

def resize(
    lora: LoraLike,
    *,
    save_to: Path | str | None = None,
    base: CheckpointLike | None = None,
    calibration: Path | str | Statistics | None = None,
    images: Images | None = None,
    overwrite: bool = False,
    rank: int = 32,
    conv_rank: int | None = None,
    max_size: str | Sequence[str] = (),
    max_error: float | None = None,
    max_output_error: float | None = None,
    min_psnr: float | None = None,
    keep_energy: float | None = None,
    max_module_error: float | None = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    dense: bool = True,
    save_precision: Literal['float', 'fp16', 'bf16', 'int8'] | torch.dtype | None = None,
    lora_alpha_is: Literal['auto', 'rank', 'file'] = 'auto',
    allow_other_base: bool = False,
    device: str = 'auto',
    config_path: Path | str | None = None,
    progress: Progress = ...,
) -> ResizedAdapter:
    """Give a LoRA other ranks, from its factors alone: the best approximation of what it was.

    Args:
        lora: the LoRA: a path, or an adapter. It is not changed.
        save_to: also write the LoRA, a .safetensors file: the bytes of `lbm-lora resize`. None: nothing is written.
        base: its base, to run resized LoRAs on `images` and at the check points of the calibration.
        calibration: statistics of the tuned model, from `calibrate` or its file: least error of the model's output
            instead of the weights.
        images: images to run resized LoRAs on: their PSNR to the one-step images of the LoRA as it was.
        progress: a listener.
        overwrite: Replace existing files at the output paths, even if lbm-lora did not write them; inputs are never
            replaced.
        rank: Rank of linear layers. 9999: as high as each matrix allows.
        conv_rank: Rank of conv layers. Default: half of the rank, 16 for 32; full for 9999.
        max_size: Choose the ranks of all layers together: the best LoRA that a file of this size can hold (200MB).
        max_error: Write the smallest file whose total relative error of the weights, against the LoRA as it was, is
            at most this: above 0, up to 1 (0.05: 5 %). Not with calibration.
        max_output_error: Write the smallest file whose relative error of the denoiser's output, against the LoRA as
            it was, is at most this: above 0, up to 10 (0.05: 5 %). Needs calibration.
        min_psnr: Write the smallest file with which each of images reaches this PSNR (dB) to the one-step image of
            the LoRA as it was. Needs images and base.
        keep_energy: Give each layer the rank that keeps this share of its energy: above 0, up to 1 (0.95: 95 %).
        max_module_error: Give each layer the rank that keeps its relative error at or below this: above 0, up to 1
            (0.3: 30 %).
        include: Keep only tensors that match one of these patterns: part of a name, a glob, or re:REGEX. Default:
            all.
        exclude: Leave out tensors that match one of these patterns. Takes precedence over include.
        dense: Keep the dense deltas of biases and norms.
        save_precision: Store the LoRA in this precision. Default: that of the file. int8 fits twice the ranks into
            a file, which only lbm-lora can read.
        lora_alpha_is: Meaning of alpha in the LoRA file: rank ignores it (scaling 1), file uses it. auto: rank for
            files of the earlier implementation, else file.
        allow_other_base: Continue even if the LoRA was made from another base than base.
        device: Run resized LoRAs on this device: auto (CUDA if available, else the CPU), cpu, cuda or cuda:N.
        config_path: Read LBM's config.yaml from here, for a base that has none in it or next to it.

    Returns:
        The LoRA, with its error against the given one.

    Raises:
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    ...

def resize_several(
    lora: LoraLike,
    *,
    save_to: Path | str | None = None,
    base: CheckpointLike | None = None,
    calibration: Path | str | Statistics | None = None,
    images: Images | None = None,
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
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    dense: bool = True,
    save_precision: Literal['float', 'fp16', 'bf16', 'int8'] | torch.dtype | None = None,
    lora_alpha_is: Literal['auto', 'rank', 'file'] = 'auto',
    allow_other_base: bool = False,
    device: str = 'auto',
    config_path: Path | str | None = None,
    progress: Progress = ...,
) -> list[ResizedAdapter]:
    """Resize a LoRA several times at once: for each of `ranks`, or of the sizes in `max_size`.

    Args:
        lora, save_to, base, calibration, images, progress: see `resize`.
        overwrite: Replace existing files at the output paths, even if lbm-lora did not write them; inputs are never
            replaced.
        rank: Rank of linear layers. 9999: as high as each matrix allows.
        conv_rank: Rank of conv layers. Default: half of the rank, 16 for 32; full for 9999.
        ranks: Write several LoRAs in one pass, one for each of these ranks of linear layers: LORA_r16.safetensors
            and so on. The conv rank of each is half of its rank, or conv_rank for all.
        max_size: Choose the ranks of all layers together: the best LoRA that a file of this size can hold (200MB,
            800KB). Several sizes give several LoRAs: LORA_200MB.safetensors and so on.
        max_error: Write the smallest file whose total relative error of the weights, against the LoRA as it was, is
            at most this: above 0, up to 1 (0.05: 5 %). Not with calibration.
        max_output_error: Write the smallest file whose relative error of the denoiser's output, against the LoRA as
            it was, is at most this: above 0, up to 10 (0.05: 5 %). Needs calibration.
        min_psnr: Write the smallest file with which each of images reaches this PSNR (dB) to the one-step image of
            the LoRA as it was. Needs images and base.
        keep_energy: Give each layer the rank that keeps this share of its energy: above 0, up to 1 (0.95: 95 %).
        max_module_error: Give each layer the rank that keeps its relative error at or below this: above 0, up to 1
            (0.3: 30 %).
        include: Keep only tensors that match one of these patterns: part of a name, a glob, or re:REGEX. Default:
            all.
        exclude: Leave out tensors that match one of these patterns. Takes precedence over include.
        dense: Keep the dense deltas of biases and norms.
        save_precision: Store the LoRA in this precision. Default: that of the file. int8 fits twice the ranks into
            a file, which only lbm-lora can read.
        lora_alpha_is: Meaning of alpha in the LoRA file: rank ignores it (scaling 1), file uses it. auto: rank for
            files of the earlier implementation, else file.
        allow_other_base: Continue even if the LoRA was made from another base than base.
        device: Run resized LoRAs on this device: auto (CUDA if available, else the CPU), cpu, cuda or cuda:N.
        config_path: Read LBM's config.yaml from here, for a base that has none in it or next to it.

    Returns:
        The LoRAs in the order of their ranks or sizes.

    Raises:
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is written then.
    """
    ...
