"""Result of `doctor`: one line for each check, and what to do below it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lbm_lora.cli.present.lines import paragraphs
from lbm_lora.cli.spelling import as_flag
from lbm_lora.report.table import table, words
from lbm_lora.report.wording import plural

if TYPE_CHECKING:
    from lbm_lora.machine import Check
    from lbm_lora.workflows.doctor import Diagnosis

_SIGNS = {"ok": "ok", "note": "note", "problem": "PROBLEM"}


def doctor(result: "Diagnosis", verbose: bool) -> str:
    """Return the checks of the machine; with a command, its own, and of the machine only notes and problems."""
    command = result.command
    if command is None:
        return paragraphs(_block("this machine", result.machine), _verdict(result))
    worth = [one for one in result.machine if verbose or one.level == "problem"]
    machine = _block("this machine", worth) if worth else ""
    return paragraphs(
        _block(f"lbm-lora {command.name.replace('data_', 'data ')}", command.checks), machine, _verdict(result)
    )


def _block(heading: str, checks: "Iterable[Check]") -> str:
    rows: list[tuple[str, str, str]] = []
    for one in checks:
        rows.append((_SIGNS[one.level], one.subject.spelled(as_flag), one.found.spelled(as_flag)))
        if one.remedy.parts:
            rows.append(("", "", f"-> {one.remedy.spelled(as_flag)}"))
    return "\n".join([heading, *table([words(), words(), words()], rows)])


def _verdict(result: "Diagnosis") -> str:
    found = plural(result.problems, "problem") if result.problems else "No problem"
    if result.command is None:
        return f"{found} found. For a command: lbm-lora doctor -- COMMAND --flag value ..."
    return f"{found} found. Nothing was run."
