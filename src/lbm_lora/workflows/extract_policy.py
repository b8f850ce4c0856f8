"""What `ExtractConfig` asks for: the way to choose ranks, the files, and what cannot be."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from lbm_lora.adapter import precision
from lbm_lora.atomic import guard_output
from lbm_lora.errors import ConfigError, OutputError
from lbm_lora.extract import COVERAGES
from lbm_lora.factorize import FULL_RANK, FixedRank
from lbm_lora.workflows.choosing import Policy
from lbm_lora.workflows.extract_config import ExtractConfig

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_POLICIES = ("ranks", "max_size", "max_error", "max_output_error", "min_psnr", "keep_energy", "max_module_error")
_SHARES = {"max_error": 1.0, "max_output_error": 10.0, "keep_energy": 1.0, "max_module_error": 1.0}


def policy_of(config: ExtractConfig) -> Policy:
    """The one way to choose ranks that was asked for.

    Raises:
        ConfigError: several ways were asked for, or a value cannot be.
    """
    given = _given(config)
    if len(given) > 1:
        raise ConfigError(f"--{given[0]} and --{given[1]} both choose the ranks. Give one of them.")
    for name, highest in _SHARES.items():
        value = getattr(config, name)
        if value is not None and not 0 < value <= highest:
            raise ConfigError(f"--{name} is {value:g}: give a share above 0 and up to {highest:g} (0.05 is 5 %).")
    if config.max_size:
        return Policy(sizes=tuple(map(parse_size, config.max_size)))
    if config.max_error is not None or config.max_output_error is not None:
        return Policy(error=config.max_error if config.max_error is not None else config.max_output_error)
    if config.min_psnr is not None:
        return Policy(psnr=config.min_psnr)
    if config.max_module_error is not None:
        return Policy(module_error=config.max_module_error)
    if config.keep_energy is not None:
        return Policy(energy=config.keep_energy)
    if not config.ranks:
        return Policy(fixed=(FixedRank(linear=config.rank, conv=config.conv_rank),))
    return Policy(fixed=tuple(FixedRank(linear=rank, conv=_conv_rank(config, rank)) for rank in config.ranks))


def policy_facts(config: ExtractConfig, index: int) -> dict[str, object]:
    """How the ranks of a LoRA were chosen, for its metadata.

    Args:
        index: of the LoRA among those that are asked for.
    """
    name = next(iter(_given(config)), "fixed")
    if name == "fixed":
        return {"rank_policy": name, "rank": config.rank, "conv_rank": config.conv_rank}
    value = getattr(config, name)
    return {"rank_policy": name, name: value[index] if isinstance(value, tuple) else value}


def paths_of(config: ExtractConfig) -> list[Path]:
    """The file of each LoRA.

    Raises:
        ConfigError: a rank or a size is given twice.
    """
    words = [f"r{rank}" for rank in config.ranks] or [size.replace(" ", "") for size in config.max_size]
    if len(set(words)) < len(words):
        raise ConfigError(f"{' '.join(words)}: each rank or size is given once.")
    if (len(words) == 1 and not config.ranks) or not words:
        return [config.save_to]
    return [config.save_to.with_name(f"{config.save_to.stem}_{word}{config.save_to.suffix}") for word in words]


def check(config: ExtractConfig, paths: Sequence[Path]) -> None:
    """Refuse what cannot be, before a checkpoint is opened.

    Raises:
        ConfigError: flags that do not go together, or a value that cannot be.
        OutputError: an output is no .safetensors file, or an input.
    """
    if config.save_to.suffix != ".safetensors":
        raise OutputError(f"--save_to {config.save_to}: a LoRA is a .safetensors file.")
    if config.include and COVERAGES[config.target_coverage]:
        raise ConfigError(
            f"--include and --target_coverage {config.target_coverage} both choose layers. Give one of them."
        )
    if config.device.startswith("mps"):
        raise ConfigError("--device mps: the decomposition sums in fp64, which mps has not. Use cpu.")
    if config.min_diff < 0:
        raise ConfigError(f"--min_diff is {config.min_diff:g}: it is compared with absolute values, give 0 or more.")
    _check_calibration(config)
    inputs = [config.base_model_path, config.tuned_model_path, *([config.calibration] if config.calibration else [])]
    for path in paths:
        guard_output(path, inputs)


def _check_calibration(config: ExtractConfig) -> None:
    if config.calibration is not None and config.calibration_images is not None:
        raise ConfigError("--calibration and --calibration_images both weigh the errors. Give one of them.")
    if config.max_error is not None and is_calibrated(config):
        raise ConfigError("--max_error is about the weights, calibration about the output: give --max_output_error.")
    if config.min_psnr is not None and config.images is None and config.calibration_images is None:
        raise ConfigError(
            "--min_psnr is about pictures: add --calibration_images FOLDER, or --calibration and --images."
        )
    if is_calibrated(config):
        return
    if config.max_output_error is not None:
        raise ConfigError("--max_output_error is about the denoiser's output: add --calibration_images FOLDER.")
    if config.images is not None:
        raise ConfigError(
            "--images is about calibrated LoRAs: add --calibration. For others: lbm-lora validate --images."
        )


def is_calibrated(config: ExtractConfig) -> bool:
    """Whether errors are weighed by what they cost in the output."""
    return config.calibration is not None or config.calibration_images is not None


def stored_dtype(config: ExtractConfig) -> torch.dtype:
    """The dtype of the files. The errors of calibrated ones come to lie below what bf16 rounds away."""
    return precision(config.save_precision or ("fp16" if is_calibrated(config) else "bf16"))


def parse_size(text: str) -> int:
    """`200MB`, `1.5 GB`, `800kB` or plain bytes -> bytes; units are powers of ten.

    Raises:
        ConfigError: it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgG]?)[iI]?[bB]?\s*", text)
    if not match or float(match[1]) <= 0:
        raise ConfigError(f"--max_size {text}: give a size such as 200MB or 1.5GB.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _given(config: ExtractConfig) -> list[str]:
    """The flags that choose ranks, as far as they are given."""
    return [name for name in _POLICIES if getattr(config, name) not in (None, ())]


def _conv_rank(config: ExtractConfig, rank: int) -> int:
    """The conv rank that belongs to one of --ranks; full rank stays full."""
    if rank >= FULL_RANK:
        return FULL_RANK
    return max(1, round(rank * config.conv_rank / config.rank)) if config.rank > 0 else rank
