"""Write `docs/performance.md` from the newest result of each theme, with the targets for full size."""

from collections.abc import Callable, Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from statistics import fmean
from typing import Any, cast

from benchmarks.page import Target, render
from benchmarks.results import Results, newest
from lbm_lora.files import write_text

BLOCKS, TENSORS = "bare pass", "bare pass by tensor"
"""Process labels of the two forms of the bare pass: in blocks that fit the cache, and tensor by tensor."""
COLUMNS = 40
"""Columns of the products whose rate is measured: about those of a Krylov round at rank 32."""

Value = Callable[[Results], float]

_ORDER = (
    *("extract", "full_rank", "several", "base", "fuse", "validate", "load", "merge", "resize"),
    *("calibrated", "train", "refine"),
)


def write_report(results: Path, page: Path) -> Path:
    """Write the page.

    Raises:
        SystemExit: no result has been measured yet.
    """
    write_text(page, report(newest(results, command="make bench")))
    return page


def report(results: Results) -> str:
    """Return the page."""
    return render(
        "performance.md.j2",
        results=results,
        runs=_runs_of_results(results),
        targets=[target.row(results) for target in TARGETS],
        processes=_processes(results),
        least=_least_seconds(results) if {"extract", "machine"} <= results.keys() else None,
        fused_over_raw=fused_over_raw,
    )


def _runs_of_results(results: Results) -> list[tuple[str, ...]]:
    """Return one row per command, machine and version, with all themes measured together."""
    runs: dict[tuple[str, ...], list[str]] = {}
    for theme, result in results.items():
        machine, versions = result["machine"], result["versions"]
        where = f"{machine['cpu']}, {machine['cores used']} of {machine['cores']} cores, {machine['memory_gb']:g} GB"
        with_gpu = f"{machine['gpu']}; {where}" if "gpu" in machine else where
        code = f"{versions['commit']}, torch {versions['torch']}, python {versions['python']}"
        key = (result["date"][:10], with_gpu, code, f"{result['settings']['scale']:g}", f"`{result['command']}`")
        runs.setdefault(key, []).append(theme)
    return [(", ".join(themes), *key) for key, themes in runs.items()]


def _processes(results: Results) -> list[tuple[str, ...]]:
    """Return one row per measured process; bytes from the system's counters, or of the files if those are larger."""
    rows: list[tuple[str, ...]] = []
    with_runs = [theme for theme, result in results.items() if "runs" in result]
    for theme in sorted(with_runs, key=lambda theme: _ORDER.index(theme.partition("-")[0])):
        runs = results[theme]["runs"]
        reference = next(iter(runs.values()))
        for label, run in runs.items():
            times = [f"{run[clock]:.2f} s" for clock in ("work_s", "wall_s", "cpu_s")]
            read, written = (
                max(run["io"].get(counter, 0), run[files])
                for counter, files in (("rchar", "input_bytes"), ("wchar", "output_bytes"))
            )
            nbytes = [f"{count / 1e9:.2f} GB" for count in (run["anon_bytes"], read, written)]
            over = " / ".join(f"{run[clock] / reference[clock]:.2f}" for clock in ("work_s", "wall_s", "cpu_s"))
            rows.append((theme, label, *times, *nbytes, "1" if run is reference else over))
    return rows


def _least_seconds(results: Results) -> Mapping[str, Any]:
    """Return the least work of extract in seconds, at the machine's rates."""
    limits, runs, work = results["machine"]["limits"], results["extract"]["runs"], results["extract"]["work"]
    rates = {dtype: limits[rate_name(dtype)] for dtype in ("fp32", "bf16")}
    seconds = {
        "read": runs[BLOCKS]["work_s"],
        "rounds": work["rounds_flop"] / 1e9 / rates[work["rounds_dtype"]],
        "fp32": work["fp32_flop"] / 1e9 / rates["fp32"],
    }
    together = sum(seconds.values())
    return {**seconds, "rates": rates, "together": together, "ratio": together / runs[TENSORS]["work_s"]}


def rate_name(dtype: str) -> str:
    """Return the key of a rate in the result of the theme `machine`."""
    return f"{dtype} product with {COLUMNS} columns, GFLOP/s"


def slower_by(theme: str, reference: str) -> Value:
    """Return a theme's own process over a reference: the larger ratio, after imports or of complete processes."""
    ours, other = f"{theme}.runs.{theme}", f"{theme}.runs.{reference}"
    ratios = [_ratio(f"{ours}.{clock}", f"{other}.{clock}") for clock in ("work_s", "wall_s")]
    return lambda results: max(ratio(results) for ratio in ratios)


def fused_over_raw(results: Results) -> float:
    """Return one step with a fused LoRA over the network's raw call, which is measured twice."""
    return results["infer"]["fused_s"] / fmean(results["infer"]["raw_s"])


def _at(keys: str) -> Value:
    """Return a function that reads a number from the results by its dotted keys."""
    return lambda results: reduce(getitem, keys.split("."), cast(Any, results))


def _ratio(keys: str, other: str | float) -> Value:
    """Return a function that divides a number by another, or by a constant."""
    return lambda results: _at(keys)(results) / (_at(other)(results) if isinstance(other, str) else other)


def _core_seconds(process: str) -> Value:
    """Return the CPU time of a process over its cores, which other work on the machine changes less than the time."""
    return lambda results: (
        results["calibrated"]["runs"][process]["cpu_s"] / results["calibrated"]["machine"]["cores used"]
    )


def _statistics(results: Results) -> float:
    """Return the size of the statistics. Older results, which name no points, are of one image at one timestep."""
    if "points" not in results["calibrated"]:
        raise KeyError("points")
    return _ratio("calibrated.runs.calibrate.output_bytes", 1e9)(results)


def _check_seconds(results: Results) -> float:
    """Return what running LoRAs adds to a calibrated extraction."""
    return _core_seconds(_CHECKED)(results) - _core_seconds(_UNCHECKED)(results)


def _memory(theme: str) -> Value:
    return _ratio(f"{theme}.runs.{theme}.anon_bytes", 1e9)


_UNCHECKED, _CHECKED = "extract --calibration --no_check", "extract --calibration"
_TENSOR_WISE = "time over the bare pass, tensor by tensor"
_BLOCK_WISE = "time over the bare pass, in blocks that fit the cache"
_SVD = _ratio("svd.full_matrices_s", "extract.runs.extract.work_s")
_FULL_ERROR = _ratio("full_rank.error.relative_error", 0.01)
_FULL_BYTES = _ratio("full_rank.bytes", "full_rank.bytes_of_factors")
_GROWTH = _ratio("load.resident_growth", "load.file_bytes")
TARGETS: tuple[Target, ...] = (
    Target(f"extract 32/16: {_TENSOR_WISE}", 2, "x", slower_by("extract", TENSORS)),
    Target(f"extract 32/16: {_BLOCK_WISE}", 2, "x", slower_by("extract", BLOCKS)),
    Target("extract 32/16: times faster than SVD with full matrices", 40, "x", _SVD, ".1f", at_least=True),
    Target("extract 32/16: peak anonymous memory", 1, "GB", _memory("extract")),
    Target("error before rounding: worst module over the optimum", 1.001, "x", _at("error.fp32.largest_ratio"), ".6f"),
    Target("error before rounding: mean over the optimum", 1.0002, "x", _at("error.fp32.mean_ratio"), ".6f"),
    Target("full rank: time", 120, "s", _at("full_rank.runs.full rank.wall_s"), ".1f"),
    Target("full rank: relative error of the bf16 file", 0.17, "%", _FULL_ERROR, ".4f"),
    Target("full rank: bytes over those of two bf16 factors", 1.01, "x", _FULL_BYTES, ".3f"),
    Target("several ranks at once: time over the largest alone", 1.2, "x", slower_by("several", "one")),
    Target("base: time over copying the bytes of both twins", 2, "x", slower_by("base", "copy")),
    Target("base: peak anonymous memory", 1, "GB", _memory("base")),
    Target("fuse: time over copying the file", 2, "x", slower_by("fuse", "copy")),
    Target("resize 64/32 to 16/8: peak anonymous memory", 1, "GB", _memory("resize")),
    Target("fuse: peak anonymous memory", 1, "GB", _memory("fuse")),
    Target(f"validate (weights): {_TENSOR_WISE}", 1.5, "x", slower_by("validate", TENSORS)),
    Target(f"validate (weights): {_BLOCK_WISE}", 1.5, "x", slower_by("validate", BLOCKS)),
    Target("validate (weights): peak anonymous memory", 1, "GB", _memory("validate")),
    Target("merge of two LoRAs of rank 32/16: peak anonymous memory", 1, "GB", _memory("merge")),
    Target("statistics of four images at four timesteps", 1, "GB", _statistics),
    Target("calibrated extraction, no LoRA run: CPU time over the cores", 120, "s", _core_seconds(_UNCHECKED), ".0f"),
    Target(
        "calibrated extraction, no LoRA run: peak anonymous memory",
        4,
        "GB",
        _ratio(f"calibrated.runs.{_UNCHECKED}.anon_bytes", 1e9),
    ),
    Target("its check: CPU time over the cores", 60, "s", _check_seconds, ".0f"),
    Target("its check: peak anonymous memory", 6, "GB", _ratio(f"calibrated.runs.{_CHECKED}.anon_bytes", 1e9)),
    Target("file to ready model, after imports", 2, "s", _at("load.load_s")),
    Target("file to ready model: memory over the file's size, all of it read", 1.05, "x", _GROWTH),
    Target("infer, fused: whole forward over the raw call", 1.03, "x", fused_over_raw, ".3f"),
)
