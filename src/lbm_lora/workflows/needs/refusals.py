"""The checks that a command begins with, and those of its device: everything that it would refuse before any work."""

import warnings
from collections.abc import Callable
from typing import Any

import torch

from lbm_lora.errors import LbmLoraError, Option, need_packages
from lbm_lora.machine import Check, Message, free_memory
from lbm_lora.machine.check import check
from lbm_lora.machine.devices import gigabytes
from lbm_lora.model.device import resolve_device
from lbm_lora.model.resolve import resolve_config
from lbm_lora.progress import LbmLoraWarning
from lbm_lora.shards import SHARD_PACKAGES
from lbm_lora.workflows.needs.inputs import Inputs
from lbm_lora.workflows.needs.memory import memory_of

_RUN = {"infer": "base_model_path", "infer_shards": "base_model_path", "calibrate": "tuned_model_path",
        "refine": "base_model_path", "train": "base_model_path"}  # fmt: skip
"""Command that runs networks -> the checkpoint that must come with their configuration."""
_FP64 = {"calibrate": "the sums need", "extract": "the decomposition sums in"}


def refusal_checks(command: str, config: Any, inputs: Inputs) -> list[Check]:
    """Run what a command checks before its work; each refusal is a problem.

    Args:
        command: name of its module in `lbm_lora.workflows`.
    """
    found = [
        _packages(command, config),
        _refused("configuration", lambda: _check_configuration(command, config, inputs)),
        _refused("options", lambda: _check_options(command, config, inputs)),
        _device(command, config),
    ]
    return [one for one in found if one is not None]


def memory_check_of(command: str, config: Any, inputs: Inputs) -> Check:
    """Compare the memory that a command would need with what is free, on the GPU if its networks run there."""
    memory, free = memory_of(command, config, inputs), free_memory()
    if memory.nbytes is None:
        return check("memory", memory.basis)
    device = _resolved(getattr(config, "device", "cpu"))
    if device.type == "cuda" and not memory.streams:
        free = torch.cuda.mem_get_info(device)[0]
    need = f"needs about {gigabytes(memory.nbytes)} ({memory.basis})"
    if free is None:
        return check("memory", f"{need}; free memory is unknown on this system", level="note")
    where = "" if device.type == "cpu" or memory.streams else f" on {device}"
    text = f"{need}; {gigabytes(free)} free{where}"
    if memory.nbytes <= free:
        return check("memory", text)
    remedy = Message(*memory.less.parts, " " if memory.less.parts else "", "Or close other programs.")
    return check("memory", text, level="problem", remedy=remedy)


def _packages(command: str, config: Any) -> Check | None:
    """Optional packages, by the checks of the workflows."""
    wanted: dict[str, tuple[str, tuple[str, ...]]] = {
        "train": ("training", ("lightning", "peft")),
        "refine": ("refining", ("peft",) if getattr(config, "method", "") == "adam" else ()),
        "data_pack": ("writing shards", SHARD_PACKAGES),
        "infer_shards": ("translating shards", ("lightning", *SHARD_PACKAGES)),
    }
    what, packages = wanted.get(command, ("", ()))
    if getattr(config, "train_shards", None) or getattr(config, "validation_shards", None):
        packages = (*packages, *SHARD_PACKAGES)
    if getattr(config, "logger", None) in ("tensorboard", "wandb"):
        packages = (*packages, config.logger)
    if getattr(config, "lpips_weights", None) or getattr(config, "lpips_net", None):
        what, packages = what or "LPIPS", (*packages, "lpips", "torchvision")
    if not packages:
        return None
    refused = _refused("extras", lambda: need_packages(what, packages, "train"))
    return refused or check("extras", f"{', '.join(packages)}: installed")


def _check_options(command: str, config: Any, inputs: Inputs) -> None:
    """Combinations of options that the command refuses, by the checks of its workflow."""
    if command == "extract":
        from lbm_lora.workflows import extract, extract_plan

        extract_plan.output_paths(config, extract.check(config)[0], ())
    elif command == "resize":
        from lbm_lora.workflows import resize

        resize.output_paths(config, resize.check(config), ())
    elif command == "merge":
        from lbm_lora.combine import merge_rule
        from lbm_lora.workflows import merge

        merge_rule(config)
        merge.check_output(config, ())
    elif command == "convert":
        from lbm_lora.workflows import convert

        convert.check(config)
        convert.check_output(config)
    elif command == "validate":
        from lbm_lora.workflows import validate

        validate.check(config)
    elif command == "refine":
        from lbm_lora.workflows import refine

        refine.check_output(config, inputs.images.get("images", ()))
    elif command == "infer":
        from lbm_lora.workflows import infer

        infer.plan(config, config.source_image, config.mask)
        _ = config.base
    elif command == "train":
        config.check_files()


def _check_configuration(command: str, config: Any, inputs: Inputs) -> None:
    """Networks are built from a configuration, which not every checkpoint has."""
    run = inputs.checkpoints.get(_RUN.get(command, ""))
    if run is not None:
        resolve_config(run, config_path=config.config_path)


def _device(command: str, config: Any) -> Check | None:
    """The device that a command would run on, with what `resolve_device` says about it."""
    name = getattr(config, "device", None)
    if name is None or command == "base":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LbmLoraWarning)
        try:
            device = resolve_device(name, fp64=_FP64.get(command, ""))
        except LbmLoraError as error:
            return check(Option("device"), name, level="problem", remedy=Message.of(error))
    said = [one.message for one in caught if isinstance(one.message, LbmLoraWarning)]
    if said:
        return check(Option("device"), f"{name}: runs on {device}", level="note", remedy=Message(*said[0].args))
    return check(Option("device"), f"{device}" if str(device) == name else f"{name}: {device}")


def _resolved(name: str) -> torch.device:
    """The device of a name, quietly: what is wrong with it is said by `_device`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LbmLoraWarning)
        try:
            return resolve_device(name)
        except LbmLoraError:
            return torch.device("cpu")


def _refused(subject: str, attempt: Callable[[], object]) -> Check | None:
    try:
        attempt()
    except (LbmLoraError, OSError) as error:
        return check(subject, "refused", level="problem", remedy=Message.of(error))
    return None
