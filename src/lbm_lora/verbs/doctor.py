"""Check the machine: the verb `doctor`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lbm_lora.errors import QualityError, plural
from lbm_lora.progress import SILENT, Progress
from lbm_lora.verbs.verb import START, verb

if TYPE_CHECKING:
    from lbm_lora.machine import Check

_SIGNS = {"ok": "ok", "note": "note", "problem": "PROBLEM"}


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """State of the machine."""

    machine: "tuple[Check, ...]"

    @property
    def problems(self) -> int:
        """Number of problems; 0 if everything can run."""
        return sum(one.level == "problem" for one in self.machine)

    @property
    def failures(self) -> tuple[QualityError, ...]:
        """A sentence if there is a problem."""
        return (QualityError(f"{plural(self.problems, 'problem')} found."),) if self.problems else ()


def _text(result: Diagnosis, _: bool) -> str:
    """Return a line for each check, and what to do below it."""
    from lbm_lora.report.table import table, words
    from lbm_lora.verbs.lines import paragraphs

    rows: list[tuple[str, str, str]] = []
    for one in result.machine:
        rows.append((_SIGNS[one.level], one.subject, one.found))
        if one.remedy:
            rows.append(("", "", f"-> {one.remedy}"))
    checks = "\n".join(["this machine", *table([words(), words(), words()], rows)])
    return paragraphs(checks, f"{plural(result.problems, 'problem') if result.problems else 'No problem'} found.")


@verb("check this installation and the machine", group=START, examples=("lbm-lora doctor",), text=_text)
def doctor(*, progress: Progress = SILENT) -> tuple[Diagnosis, Diagnosis]:
    """Check the installation and the machine. The exit code is 1 if a problem was found.

    Returns:
        The checks, each with its level and remedy; `problems` counts what keeps commands from running.
    """
    from lbm_lora.machine import machine_checks

    progress.start(0, "looking")
    result = Diagnosis(machine=machine_checks())
    return result, result
