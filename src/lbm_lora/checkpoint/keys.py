"""The keys of a checkpoint as its writer meant them: without the names that trainers wrap around modules."""

from collections.abc import Iterable

from lbm_lora.errors import CheckpointError, listing

_WRAPPERS = frozenset({"_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""Path segments of torch.compile, Lightning, FSDP and activation checkpointing."""

_AFTER_MODEL = frozenset({"module", "denoiser", "vae", "num_iterations", "lpips_loss", "conditioner"})
"""What stands behind `model.` in an LBM's training checkpoint."""


def normalized(key: str) -> str:
    """`model.denoiser._orig_mod.conv_in.weight` -> `denoiser.conv_in.weight`.

    Wrapper segments go wherever they stand; `module.` (DDP) goes at the front only, where no network has it as a
    name of its own; `model.` (Lightning) goes in front of the components of an LBM.
    """
    segments = [segment for segment in key.split(".") if segment not in _WRAPPERS]
    while _has_wrapper(segments):
        del segments[0]
    return ".".join(segments)


def normalized_keys(keys: Iterable[str], where: object) -> dict[str, str]:
    """Map each normalized key to the key in the file, in the file's order.

    Raises:
        CheckpointError: two keys of the file become one.
    """
    result: dict[str, str] = {}
    clashes: list[str] = []
    for key in keys:
        short = normalized(key)
        if short in result:
            clashes.append(f"{result[short]} and {key}")
        result[short] = key
    if clashes:
        raise CheckpointError(
            f"{where}: keys that are one without their wrappers: {listing(clashes)}. Remove one of each pair."
        )
    return result


def _has_wrapper(segments: list[str]) -> bool:
    """Whether the first segment is a trainer's name for the whole model."""
    if len(segments) < 2:
        return False
    return segments[0] == "module" or (segments[0] == "model" and segments[1] in _AFTER_MODEL)
