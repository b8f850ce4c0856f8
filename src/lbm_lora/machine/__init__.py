"""This machine as checks (layer L5a): libraries, devices, memory, disk, the hub, the environment.

Each check has a level, what was found, and for anything but `ok` what to do. Nothing is changed or contacted.
"""

from lbm_lora.machine.check import Check, Level, Message
from lbm_lora.machine.devices import device_checks
from lbm_lora.machine.libraries import library_checks
from lbm_lora.machine.resources import disk_checks, existing_folder, free_disk, free_memory, is_writable, memory_check
from lbm_lora.machine.surroundings import environment_check, hub_checks, text_check

__all__ = [
    "Check",
    "Level",
    "Message",
    "existing_folder",
    "free_disk",
    "free_memory",
    "is_writable",
    "machine_checks",
]


def machine_checks() -> tuple[Check, ...]:
    """Return every check of this machine, in the order in which a user reads them."""
    return (
        *library_checks(),
        *device_checks(),
        memory_check(),
        *disk_checks(),
        *hub_checks(),
        environment_check(),
        text_check(),
    )
