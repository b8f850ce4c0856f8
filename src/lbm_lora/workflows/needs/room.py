"""Whether outputs can be written where they should go, and whether there is room for them."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lbm_lora.errors import LbmLoraError, plural
from lbm_lora.file_plan import FilePlan
from lbm_lora.machine import Check, Message, existing_folder, free_disk, is_writable
from lbm_lora.machine.check import check
from lbm_lora.machine.devices import gigabytes
from lbm_lora.ownership import is_any_kind
from lbm_lora.workflows.needs.inputs import Inputs
from lbm_lora.workflows.needs.outputs import Output


def output_checks(config: Any, outputs: Iterable[Output], inputs: Inputs) -> list[Check]:
    """Check what exists, what may be written, and the room on each disk."""
    outputs = list(outputs)
    checks = [_said(one) for one in outputs]
    plan = FilePlan()
    plan.reads(*inputs.paths)
    for one in outputs:
        if not one.is_folder:
            plan.writes(one.path, ours=is_any_kind)
    try:
        # a command without the option replaces what it finds
        plan.check(overwrite=getattr(config, "overwrite", True))
    except LbmLoraError as error:
        checks.append(check("outputs", "cannot be written as given", level="problem", remedy=Message.of(error)))
    return [*checks, *_disks(outputs)]


def _said(one: Output) -> Check:
    """An output with its size, what is there now, and whether its folder may be written."""
    size = "size not known before the run" if one.nbytes is None else f"about {gigabytes(one.nbytes)}"
    subject, folder = "output", existing_folder(one.path if one.is_folder else one.path.parent)
    if not is_writable(folder):
        return check(subject, f"{one.path}: {folder} cannot be written", level="problem", remedy="Choose another path.")
    if one.is_folder and one.path.exists() and not one.path.is_dir():
        remedy = "Give the path of a folder."
        return check(subject, f"{one.path} is a file", level="problem", remedy=remedy)
    if one.path.exists() and one.is_temporary:
        remedy = "An interrupted run left it: with the same inputs and settings, the command resumes from it."
        return check(subject, f"{one.path}: {size}; exists", level="note", remedy=remedy)
    if one.path.exists() and not one.is_folder:
        remedy = "It is replaced, and needs its room until then. Choose another path to keep it."
        return check(subject, f"{one.path}: {size}; exists", level="note", remedy=remedy)
    return check(subject, f"{one.path}: {size}")


def _disks(outputs: Iterable[Output]) -> list[Check]:
    """The room on each file system, with everything that goes there."""
    needs: dict[int, int] = defaultdict(int)
    places: dict[int, Path] = {}
    counts: dict[int, int] = defaultdict(int)
    for one in outputs:
        folder = existing_folder(one.path.parent)
        device = folder.stat().st_dev
        places.setdefault(device, folder)
        needs[device] += one.nbytes or 0
        counts[device] += one.nbytes is None
    checks: list[Check] = []
    for device, need in needs.items():
        free = free_disk(places[device])
        unknown = f", and {plural(counts[device], 'output')} of unknown size" if counts[device] else ""
        text = f"needs about {gigabytes(need)}{unknown}; {gigabytes(free)} free at {places[device]}"
        if need > free:
            remedy = "Delete files, or write to another disk."
            checks.append(check("disk", text, level="problem", remedy=remedy))
        else:
            checks.append(check("disk", text))
    return checks
