"""Render pages from templates, and compare results with targets."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from jinja2 import Environment, FileSystemLoader, StrictUndefined


@dataclass(frozen=True)
class Target:
    """A target for one number."""

    what: str
    limit: float
    unit: str
    value: Callable[[Any], float | None]  # reads it from a result; None or a KeyError if not measured
    form: str = ".2f"  # of the measured value, as in `format`
    at_least: bool = False  # the limit is a lower bound
    by_difference: bool = False  # report a miss in the unit, else in percent of the smaller number

    def row(self, found: Any) -> tuple[str, str, str, str]:
        """Return the name, the target, the measured value, and the verdict."""
        try:
            measured = self.value(found)
        except KeyError:
            measured = None
        shown = "-" if measured is None else f"{measured:{self.form}} {self.unit}".rstrip()
        limit = f"{'>=' if self.at_least else '<='} {self.limit:g} {self.unit}".rstrip()
        return self.what, limit, shown, self._verdict(measured)

    def _verdict(self, measured: float | None) -> str:
        if measured is None:
            return "not measured"
        low, high = (measured, self.limit) if self.at_least else (self.limit, measured)
        if high <= low:
            return "met"
        if self.by_difference:
            return f"missed by {high - low:.3g} {self.unit}".rstrip()
        return f"missed by {100 * (high / low - 1):.3g} %"


def render(template: str, **values: Any) -> str:
    """Render a template of `templates/` without repeated blank lines; a missing value is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = cast(dict[str, Any], environment.filters)
    filters |= {
        "fixed": lambda value, digits: f"{value:.{digits}f}",
        "signed": lambda value, digits: f"{value:+.{digits}f}",
        "seconds": lambda value: f"{value:.2f} s",
        "gb": lambda nbytes: f"{nbytes / 1e9:.2f} GB",
        "mb": lambda nbytes: f"{nbytes / 1e6:.2f} MB",
    }
    text = environment.get_template(template).render(values)
    return re.sub(r"\n{3,}", "\n\n", text.strip()) + "\n"
