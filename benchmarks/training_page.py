"""The measured part of docs/training.md, out of what `benchmarks.relight` and `benchmarks.training` found last."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT
from benchmarks.report import table
from benchmarks.results import FOLDER, newest
from lbm_lora.atomic import write_text

RESULTS = FOLDER / "training"
PAGE = ROOT / "docs" / "training.md"
BEGIN = "<!-- measured:begin (python -m benchmarks.training page) -->\n"
END = "<!-- measured:end -->"

STEP_RATIO = 1.05
"""What a step may take over one of the loop by hand."""

Result = Mapping[str, Any]


def write_page(results: Path = RESULTS, page: Path = PAGE) -> Path:
    """Write the part between the page's markers; returns the page.

    Raises:
        SystemExit: there is no result, or the page has not both markers.
    """
    found = newest(results)
    if not found:
        raise SystemExit("error: there are no results yet. Measure with: python -m benchmarks.training")
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"error: {page.name} has not both markers of its measured part.")
    write_text(page, f"{before}{begin}{render(found)}{end}{after}")
    return page


def render(results: Mapping[str, Result]) -> str:
    """A section for each result that is there."""
    return "\n".join(section(results[theme]) for theme, section in SECTIONS.items() if theme in results)


def _scratch(result: Result) -> str:
    settings, summary = result["settings"], result["summary"]
    rows = [
        (name, f"{one['whole']:.2f}", f"{one['inside']:.2f}", f"{100 * one['better_than_source']:.0f} %")
        for name, one in summary.items()
    ]
    gaps = [
        f"{result['gap'][where]['mean']:+.2f} dB ({result['gap'][where]['standard_error']:.2f}) {where}"
        for where in ("whole", "inside")
    ]
    minutes = settings["max_steps"] * result["step_s"] / 60
    return (
        f"A LoRA from nothing on the mini model's base: rank {settings['lora_rank']} for linear and conv layers, "
        f"biases and norms, {result['lora_bytes'] / 1e6:.1f} MB in fp32. It took {settings['max_steps']:,} steps of "
        f"{settings['batch_size']} pairs out of {result['train_pairs']:,} renders, in {minutes:.0f} minutes "
        f"({result['step_s']:.2f} s a step), and its last average counts. Held out are {result['pairs']} pairs of "
        "objects, textures and lights that no training saw. One step, fp32, mean PSNR to the target (dB):\n\n"
        + table(("model", "whole picture", "inside the object", "pairs nearer than the source, inside"), rows)
        + "\nOutside the object a source is its target, which no output of a VAE is. LoRA over tuned, with the "
        f"standard error of the mean over pairs: {', '.join(gaps)}. {_measured(result)}\n"
    )


def _continued(result: Result) -> str:
    validation, changed = result["validation"], result["changes"]
    names = {
        "base": "base",
        "extracted": f"the LoRA as extracted, rank {result['rank']}",
        "continued": f"the same after {result['steps']} steps",
        "tuned": "tuned",
    }
    rows = [
        (name, f"{validation[key]['loss']:.5f}", *(f"{loss:.5f}" for loss in validation[key]["losses"].values()))
        for key, name in names.items()
    ]
    timesteps = [f"at {float(timestep):g}" for timestep in validation["tuned"]["losses"]]
    modules = ", ".join(f"`{name}`" for name in result["modules"])
    return (
        f"An extracted LoRA that goes on learning, its modules of {modules} alone, on the same renders. Validation "
        f"loss on {validation['tuned']['pairs']} held-out pairs, with the same timesteps and noise for all:\n\n"
        + table(("model", "loss", *timesteps), rows)
        + f"\nOf {changed['selected']} selected modules {changed['selected_changed']} have changed, of the other "
        f"{changed['others']} modules {changed['others_changed']}, of {changed['dense']} biases and norms "
        f"{changed['dense_changed']}, compared bit for bit. {_measured(result)}\n"
    )


def _step_time(result: Result) -> str:
    settings = result["settings"]
    rows = [
        (name, f"{one['cpu_s']:.3f} s", _ratio(one, "cpu"), f"{one['wall_s']:.3f} s", _ratio(one, "wall"))
        for name, one in result["ways"].items()
    ]
    return (
        f"A step of a rank {settings['rank']} LoRA on all modules, {settings['batch_size']} pairs of "
        f"{settings['size']} x {settings['size']}, precision {settings['precision']}, checkpointed gradients, "
        f"torch threads: {settings['threads']}. Medians of {settings['rounds']} rounds of {settings['steps']} steps in "
        "turns, and in brackets the least and the largest ratio of a round. The loop by hand has the same optimizer, "
        "and its pictures in memory:\n\n"
        + table(("loop", "CPU time", "ratio", "wall time", "ratio"), rows)
        + f"\nThe aim is a ratio of at most {STEP_RATIO}. {_measured(result)}\n"
    )


def _ratio(way: Mapping[str, Any], clock: str) -> str:
    ratios = way[f"{clock}_ratios"]
    return f"{way[f'{clock}_ratio']:.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def _measured(result: Result) -> str:
    """Command, day and machine."""
    where = result["machine"]
    cores = f"{where['cores used']} of {where['cores']} cores"
    return f"`{result['command']}`, {result['date'][:10]}, {where['cpu']}, {cores}."


SECTIONS = {"scratch": _scratch, "continued": _continued, "step_time": _step_time}
"""Theme -> its section, in the order of the page."""
