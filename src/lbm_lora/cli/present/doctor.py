"""Result of `doctor`: one line for each check, and what to do below it."""

from typing import TYPE_CHECKING

from lbm_lora.cli.present.lines import paragraphs
from lbm_lora.report.text.tables import table, words
from lbm_lora.report.wording import plural

if TYPE_CHECKING:
    from lbm_lora.workflows.doctor import Diagnosis

_SIGNS = {"ok": "ok", "note": "note", "problem": "PROBLEM"}


def doctor(result: "Diagnosis", verbose: bool) -> str:
    """Return the checks of the machine."""
    rows: list[tuple[str, str, str]] = []
    for one in result.machine:
        rows.append((_SIGNS[one.level], one.subject, one.found))
        if one.remedy:
            rows.append(("", "", f"-> {one.remedy}"))
    checks = "\n".join(["this machine", *table([words(), words(), words()], rows)])
    return paragraphs(checks, f"{plural(result.problems, 'problem') if result.problems else 'No problem'} found.")
