"""What an extraction works on beside the pair: a base that is made, statistics that are measured, pictures, notes."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lbm_lora.checkpoint import Checkpoint
from lbm_lora.extract import Plan
from lbm_lora.model.device import resolve_device
from lbm_lora.model.resolve import config_beside
from lbm_lora.progress import Progress
from lbm_lora.workflows.choosing import Chosen
from lbm_lora.workflows.extract_config import ExtractConfig

if TYPE_CHECKING:
    from lbm_lora.workflows.trial import Trial

_log = logging.getLogger(__name__)

_VAE = "vae."
_BASE_MARK = "exact_architecture_match"  # what `lbm-lora base` writes as `initialization`


def base_path(config: ExtractConfig, progress: Progress) -> Path:
    """The base, which is made first where that is asked for."""
    if not config.create_base_model:
        return config.base_model_path
    # only this needs the network classes: extraction itself works without them
    from lbm_lora.workflows.base import ensure_base

    return ensure_base(
        config.base_model_path,
        backbone_signature=config.backbone_signature,
        config_path=config.config_path or config_beside(config.tuned_model_path),
        progress=progress,
    )


def calibration_of(config: ExtractConfig, progress: Progress) -> Path | None:
    """The statistics to use; where only images are given, they are measured first."""
    if config.calibration is not None or config.calibration_images is None:
        return config.calibration
    # only this needs the network classes
    from lbm_lora.workflows import calibrate

    path = config.save_to.with_name(f"{config.save_to.stem}_calibration.safetensors")
    calibrate.run(
        calibrate.CalibrateConfig(
            tuned_model_path=config.tuned_model_path,
            images=config.calibration_images,
            save_to=path,
            device=config.device,
            config_path=config.config_path,
        ),
        progress,
    )
    return path


def trial_pictures(config: ExtractConfig) -> tuple[Path, ...]:
    """The pictures that a LoRA is to be run on, each of them read once.

    Raises:
        ImageError: one is not there or cannot be read.
    """
    named = config.images or (config.calibration_images if config.min_psnr is not None else None)
    if named is None:
        return ()
    # only this needs the network classes
    from lbm_lora.imaging.files import read_image
    from lbm_lora.imaging.paths import expand_sources

    pictures = expand_sources(named)
    for picture in pictures:
        read_image(picture)
    return pictures


def trial_of(
    config: ExtractConfig, plan: Plan, chosen: Chosen, pictures: Sequence[Path], progress: Progress
) -> "Trial | None":
    """The network to try LoRAs in; None where there is nothing to run them on."""
    checks = chosen.checks if config.check else ()
    if not checks and not pictures:
        return None
    # only this needs the network classes
    from lbm_lora.workflows.trial import Trial

    return Trial(
        config.tuned_model_path,
        plan.pairing.base,
        checks=checks,
        pictures=pictures,
        config_path=config.config_path,
        device=resolve_device(config.device),
        progress=progress,
    )


def swap_notes(tuned: Checkpoint) -> tuple[str, ...]:
    """A warning where the tuned file says that it is an exact base."""
    if _BASE_MARK not in (tuned.metadata.get("initialization"), tuned.extra.get("initialization")):
        return ()
    note = f"{tuned.path} says that it is an exact base, not a tuned checkpoint. Are base and tuned swapped?"
    _log.warning(note)
    return (note,)


def vae_notes(base: Checkpoint, tuned: Checkpoint) -> tuple[str, ...]:
    """A warning where the two carry different VAEs: no LoRA of the denoiser can make up for it."""
    names = [key for key in tuned.specs if key.startswith(_VAE) and key in base.specs]
    differing = [key for key in names if not torch.equal(base.read(key).float(), tuned.read(key).float())]
    if not differing:
        return ()
    note = (
        f"The VAEs differ in {len(differing)} of {len(names)} tensors ({differing[0]} ...): the LoRA is about the "
        "denoiser alone, so base + LoRA decodes with the base's VAE."
    )
    _log.warning(note)
    return (note,)
