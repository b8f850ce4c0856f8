"""The targets for full size, and what the result files say of each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Results = Mapping[str, Mapping[str, Any]]
"""Theme -> its newest result."""

_GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Target:
    """One line of the table.

    Attributes:
        what: the command and the quantity.
        limit: that the value is held against.
        unit: `x`, `s`, `GB`, `%`; how value and limit are shown.
        theme: the result that has the value.
        value: out of the results.
        at_least: whether the limit is a lower one.
        stretch: a further aim.
        digits: after the decimal point.
    """

    what: str
    limit: float
    unit: str
    theme: str
    value: Callable[[Results], float]
    at_least: bool = False
    stretch: float | None = None
    digits: int = 2


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Target and measured value; None where it was not measured, with the reason."""

    target: Target
    value: float | None
    reason: str = ""

    @property
    def met(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.target.limit if self.target.at_least else self.value <= self.target.limit

    @property
    def words(self) -> str:
        """`met`, `missed by 23 %`, `not measured: ...`."""
        target, value = self.target, self.value
        if value is None:
            return f"not measured: {self.reason}"
        if not self.met:
            share = target.limit / value if target.at_least else value / target.limit
            return f"missed by {100 * (share - 1):.3g} %"
        if target.stretch is not None and value <= target.stretch:
            return f"met, and the stretch of {target.stretch:g} {target.unit} too"
        return "met"


def verdicts(results: Results) -> list[Verdict]:
    """Every target with its value."""
    return [_verdict(target, results) for target in TARGETS]


def _verdict(target: Target, results: Results) -> Verdict:
    found = results.get(target.theme)
    if found is None:
        return Verdict(target=target, value=None, reason=f"no result of {target.theme}")
    if "missing" in found:
        return Verdict(target=target, value=None, reason=found["missing"])
    try:
        return Verdict(target=target, value=float(target.value(results)))
    except KeyError as error:
        return Verdict(target=target, value=None, reason=f"no result of {error.args[0]}")


def slower_by(theme: str, reference: str = "") -> Callable[[Results], float]:
    """The ratio of a theme: the larger of the one after imports and the one of whole processes."""

    def value(results: Results) -> float:
        found = results[theme]["ratios"]
        found = found[reference] if reference else found
        return max(found["work_s"], found["wall_s"])

    return value


def _memory(theme: str, label: str) -> Callable[[Results], float]:
    return lambda results: results[theme]["runs"][label]["anon_bytes"] / _GB


TARGETS: tuple[Target, ...] = (
    Target(
        what="extract 32/16: time over the bare pass, tensor by tensor",
        limit=2,
        stretch=1.5,
        unit="x",
        theme="extract",
        value=slower_by("extract", "bare pass by tensor"),
    ),
    Target(
        what="extract 32/16: time over the bare pass, in blocks that fit the cache",
        limit=2,
        stretch=1.5,
        unit="x",
        theme="extract",
        value=slower_by("extract", "bare pass"),
    ),
    Target(
        what="extract 32/16: times faster than SVD with full matrices",
        limit=40,
        unit="x",
        theme="svd",
        value=lambda r: r["svd"]["full_matrices_s"] / r["extract"]["runs"]["extract"]["work_s"],
        at_least=True,
        digits=1,
    ),
    Target(
        what="extract 32/16: peak anonymous memory",
        limit=1,
        unit="GB",
        theme="extract",
        value=_memory("extract", "extract"),
    ),
    Target(
        what="error before rounding: worst module over the optimum",
        limit=1.001,
        unit="x",
        theme="error",
        value=lambda r: r["error"]["fp32"]["largest_ratio"],
        digits=6,
    ),
    Target(
        what="error before rounding: mean over the optimum",
        limit=1.0002,
        unit="x",
        theme="error",
        value=lambda r: r["error"]["fp32"]["mean_ratio"],
        digits=6,
    ),
    Target(
        what="full rank: time",
        limit=120,
        unit="s",
        theme="full_rank",
        value=lambda r: r["full_rank"]["runs"]["full rank"]["wall_s"],
        digits=1,
    ),
    Target(
        what="full rank: relative error of the bf16 file",
        limit=0.17,
        unit="%",
        theme="full_rank",
        value=lambda r: 100 * r["full_rank"]["error"]["relative_error"],
        digits=4,
    ),
    Target(
        what="full rank: bytes over those of two bf16 factors",
        limit=1.01,
        unit="x",
        theme="full_rank",
        value=lambda r: r["full_rank"]["bytes"] / r["full_rank"]["bytes_of_factors"],
        digits=3,
    ),
    Target(
        what="several ranks at once: time over the largest alone",
        limit=1.2,
        unit="x",
        theme="several",
        value=slower_by("several"),
    ),
    Target(
        what="base: time over copying the bytes of both twins", limit=2, unit="x", theme="base", value=slower_by("base")
    ),
    Target(what="base: peak anonymous memory", limit=1, unit="GB", theme="base", value=_memory("base", "base")),
    Target(what="fuse: time over copying the file", limit=2, unit="x", theme="fuse", value=slower_by("fuse")),
    Target(what="fuse: peak anonymous memory", limit=1, unit="GB", theme="fuse", value=_memory("fuse", "fuse")),
    Target(
        what="validate (weights): time over the bare pass, tensor by tensor",
        limit=1.5,
        unit="x",
        theme="validate",
        value=slower_by("validate", "bare pass by tensor"),
    ),
    Target(
        what="validate (weights): time over the bare pass, in blocks that fit the cache",
        limit=1.5,
        unit="x",
        theme="validate",
        value=slower_by("validate", "bare pass"),
    ),
    Target(
        what="validate (weights): peak anonymous memory",
        limit=1,
        unit="GB",
        theme="validate",
        value=_memory("validate", "validate"),
    ),
    Target(
        what="file to ready model, after imports", limit=2, unit="s", theme="load", value=lambda r: r["load"]["load_s"]
    ),
    Target(
        what="file to ready model: memory over the file's size, all of it read",
        limit=1.05,
        unit="x",
        theme="load",
        value=lambda r: r["load"]["resident_growth"] / r["load"]["file_bytes"],
    ),
    Target(
        what="infer, fused: whole forward over the raw call",
        limit=1.03,
        unit="x",
        theme="infer",
        value=lambda r: r["infer"]["ratios"]["fused"],
        digits=3,
    ),
)
