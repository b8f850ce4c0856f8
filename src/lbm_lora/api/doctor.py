"""What is wrong with this machine: doctor."""

from typing import TYPE_CHECKING

from lbm_lora.configs.doctor import DoctorConfig
from lbm_lora.progress import SILENT, Progress

if TYPE_CHECKING:
    from lbm_lora.workflows.doctor import Diagnosis


def doctor(*, progress: Progress = SILENT) -> "Diagnosis":
    """Check the installation and the machine.

    Args:
        progress: a listener.

    Returns:
        The checks, each with its level and remedy; `problems` counts what keeps commands from running.
    """
    from lbm_lora.workflows import doctor as doctor_workflow

    return doctor_workflow.run(DoctorConfig(), progress)
