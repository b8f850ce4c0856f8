"""Checkpoint keys without the wrapper names that trainers add to modules."""

from collections.abc import Iterable

from lbm_lora.errors import CheckpointError, listing

_WRAPPERS = frozenset({"_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Path segments added by torch.compile, Lightning, FSDP and activation checkpointing."""

_AFTER_MODEL = frozenset({"module", "denoiser", "vae", "num_iterations", "lpips_loss", "conditioner"})
"""Names that follow `model.` in an LBM training checkpoint."""


def normalized(key: str) -> str:
    """Remove wrapper names: `model.denoiser._orig_mod.conv_in.weight` -> `denoiser.conv_in.weight`.

    Wrapper segments are removed anywhere; `module.` (DDP) only at the front, where it cannot be a network's own name;
    `model.` (Lightning) only before the components of an LBM.
    """
    segments = [segment for segment in key.split(".") if segment not in _WRAPPERS]
    while _has_wrapper(segments):
        del segments[0]
    return ".".join(segments)


def normalized_keys(keys: Iterable[str], where: object) -> dict[str, str]:
    """Map each normalized key to the key in the file, in the file's order."""
    result: dict[str, str] = {}
    clashes: list[str] = []
    for key in keys:
        short = normalized(key)
        if short in result:
            clashes.append(f"{result[short]} and {key}")
        result[short] = key
    if clashes:
        raise CheckpointError(
            f"{where}: these keys are the same without their wrappers: {listing(clashes)}. Remove one of each pair."
        )
    return result


def _has_wrapper(segments: list[str]) -> bool:
    """Return whether the first segment is a trainer's name for the complete model."""
    if len(segments) < 2:
        return False
    return segments[0] == "module" or (segments[0] == "model" and segments[1] in _AFTER_MODEL)
