"""`python -m benchmarks [run | pair | report]`."""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import machine
from benchmarks.bench import Bench, Options
from benchmarks.measure import ROOT, JobFailedError
from benchmarks.report import write_report
from benchmarks.results import FOLDER, write_result
from benchmarks.themes import ON_DEVICE, THEMES

_FOLDERS = ("--work", "--results", "--to")
PAGE = ROOT / "docs" / "performance.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Run; the exit code is 1 where a theme failed."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(words)
    if options.what == "report":
        print(write_report(options.results or FOLDER, options.to))
        return 0
    if not 0 < options.scale <= 1:
        raise SystemExit(f"error: --scale {options.scale:g}: it lies above 0 and at most at 1, the real LBM.")
    bench = Bench(
        Options(
            work=options.work.resolve(),
            scale=options.scale,
            seed=options.seed,
            repeats=options.repeats,
            cores=options.cores,
            device=options.device,
            error_layers=options.error_layers,
            keep=options.keep,
        )
    )
    bench.options.work.mkdir(parents=True, exist_ok=True)
    if options.what == "pair":
        print(bench.pair.base.parent)
        return 0
    themes = options.only.split(",") if options.only else list(THEMES if options.device == "cpu" else ON_DEVICE)
    unknown = [theme for theme in themes if theme not in THEMES]
    if unknown:
        raise SystemExit(f"error: --only {','.join(unknown)}: the themes are {', '.join(THEMES)}.")
    return _run(bench, themes, options.results, _without_paths(words))


def _run(bench: Bench, themes: Sequence[str], results: Path | None, command: str) -> int:
    options = bench.options
    # a number of a reduced scale is a trial: it does not go to the committed results unless it is told to
    folder = results or (FOLDER if options.scale == 1 else options.work / "results")
    subject = {"machine": machine.machine(options.cores, options.device), "versions": machine.versions()}
    failed: list[str] = []
    try:
        for theme in themes:
            print(f"{theme}:", flush=True)
            start = time.perf_counter()
            try:
                numbers = THEMES[theme](bench)
            except JobFailedError as error:
                print(f"  failed: {error}", file=sys.stderr, flush=True)
                failed.append(theme)
                continue
            name = theme if options.device == "cpu" else f"{theme}-{options.device.partition(':')[0]}"
            settings = {"scale": options.scale, "repeats": options.repeats, "device": options.device}
            path = write_result(
                folder,
                name,
                {**subject, "seconds": round(time.perf_counter() - start, 1), **numbers},
                command=command,
                settings=settings,
                pair=bench.pair.facts,
                slug=machine.slug(options.cores, options.device),
            )
            print(f"  {path.name}, {time.perf_counter() - start:.0f} s", flush=True)
    finally:
        bench.clean()
    if folder == FOLDER:
        write_report(folder, PAGE)
    if failed:
        print(f"error: {len(failed)} of {len(themes)} themes failed: {', '.join(failed)}.", file=sys.stderr)
    return int(bool(failed))


def _without_paths(words: Sequence[str]) -> str:
    """The command line without its folders: a result file names none."""
    kept: list[str] = []
    for before, word in zip(("", *words), words, strict=False):
        if before not in _FOLDERS and word not in _FOLDERS:
            kept.append(word.partition("=")[0] if word.startswith(tuple(f"{flag}=" for flag in _FOLDERS)) else word)
    return shlex.join(["python", "-m", "benchmarks", *kept])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("what", nargs="?", choices=("run", "pair", "report"), default="run", help="measure, only make the pair, report")
    add("--only", metavar="THEME,THEME", help=f"themes to run: {', '.join(THEMES)}")
    add("--scale", type=float, default=1.0, help="of the networks' widths and depth; 1 is the real LBM (default)")
    add("--work", type=Path, default=ROOT / "benchmarks" / "work", help="folder for 10 to 30 GB of files")
    add(
        "--results", type=Path, help="folder of result files; default benchmarks/results, for a scale below 1 in --work"
    )
    add("--seed", type=int, default=0, help="of the pair")
    add("--repeats", type=int, default=3, help="runs of each side of a ratio; the median counts")
    add("--cores", type=int, default=2, help="that the measured processes may use")
    add("--device", default="cpu", help="of extract and infer: cpu or cuda")
    add("--error_layers", type=int, default=2, help="modules of each shape in the error's sample; 0: all")
    add("--to", type=Path, default=PAGE, help="the page that report writes; default docs/performance.md")
    add("--keep", action="store_true", help="keep the outputs of the commands")
    return parser


if __name__ == "__main__":
    sys.exit(main())
