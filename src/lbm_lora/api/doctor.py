"""What is wrong with this machine, or with a command: doctor."""

from typing import TYPE_CHECKING

from lbm_lora.configs.doctor import DoctorConfig
from lbm_lora.progress import SILENT, Progress

if TYPE_CHECKING:
    from lbm_lora.workflows.doctor import Diagnosis


def doctor(config: object | None = None, *, progress: Progress = SILENT) -> "Diagnosis":
    """Check the installation and the machine, and what a command would need, without running it.

    Args:
        config: config of the command, such as an `ExtractConfig`. None: only the machine is checked.
        progress: a listener.

    Returns:
        The checks, each with its level and remedy; `problems` counts what keeps the command from running.

    Raises:
        TypeError: `config` is not the config of a command.
    """
    from lbm_lora.workflows import doctor as doctor_workflow

    module = type(config).__module__
    if config is not None and not module.startswith("lbm_lora.configs."):
        raise TypeError(f"doctor() takes the config of a command, such as ExtractConfig, not {type(config).__name__}")
    return doctor_workflow.run(DoctorConfig(parsed=config), progress)
