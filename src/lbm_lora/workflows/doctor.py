"""Check the machine: the verb `doctor`."""

from dataclasses import dataclass

from lbm_lora.configs.doctor import DoctorConfig
from lbm_lora.errors import QualityError, plural
from lbm_lora.machine import Check, machine_checks
from lbm_lora.progress import SILENT, Progress


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """State of the machine."""

    machine: tuple[Check, ...]

    @property
    def problems(self) -> int:
        """Number of problems; 0 if everything can run."""
        return sum(one.level == "problem" for one in self.machine)

    @property
    def failures(self) -> tuple[QualityError, ...]:
        """A sentence if there is a problem."""
        return (QualityError(f"{plural(self.problems, 'problem')} found."),) if self.problems else ()


def run(config: DoctorConfig, progress: Progress = SILENT) -> Diagnosis:
    """Check the machine. Nothing is written, fetched or computed."""
    progress.start(0, "looking")
    return Diagnosis(machine=machine_checks())
