"""Try the wheel as a user would: every command x extra, its --help and its first error without flags, with seconds.

    python -m pip wheel --no-deps --wheel-dir DIST .
    python tools/try_install.py DIST/lbm_lora-*.whl --work FOLDER [--extras bare train]

Makes a virtual environment for each extra in FOLDER, with the versions of constraints.txt, and prints a Markdown table.
An environment that is there is used again. Needs nothing but Python and pip.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def install(wheel: Path, extra: str, work: Path) -> Path:
    """The folder of programs of an environment with the wheel; `bare` stands for no extra."""
    programs = work / extra / ("Scripts" if sys.platform == "win32" else "bin")
    if not (programs / "pip").exists():
        subprocess.run([sys.executable, "-m", "venv", work / extra], check=True)
    wanted = str(wheel) if extra == "bare" else f"{wheel}[{extra}]"
    pip = [programs / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, wanted, "--constraint", ROOT / "constraints.txt"], check=True)
    # a wheel of the same version as the installed one may still be another
    subprocess.run([*pip, "--force-reinstall", "--no-deps", wheel], check=True)
    return programs


def tried(programs: Path, words: Sequence[str], work: Path) -> tuple[int, str, float]:
    """Exit code, the first line on stderr and seconds of one command line, run in an empty folder."""
    start = time.perf_counter()
    done = subprocess.run([programs / "lbm-lora", *words], cwd=work, capture_output=True, text=True, check=False)
    return done.returncode, (done.stderr.splitlines() or [""])[0], time.perf_counter() - start


def commands(programs: Path) -> list[str]:
    """The names of all commands, as the installed package has them."""
    code = "from lbm_lora.cli.main import COMMANDS; print('\\n'.join(COMMANDS))"
    done = subprocess.run([programs / "python", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def rows(extra: str, programs: Path, work: Path) -> list[str]:
    """One row of the table for each command; `demo`, which needs no flag, is only asked for its help."""
    made: list[str] = []
    for name in commands(programs):
        code, _, seconds = tried(programs, [*name.split(), "--help"], work)
        row = f"| {name} | {extra} | {code}, {seconds:.2f} s |"
        if name == "demo":
            made.append(f"{row} | |")
            continue
        code, said, seconds = tried(programs, name.split(), work)
        made.append(f"{row} {code}, {seconds:.2f} s | {said} |")
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Install, try, and print the table."""
    parser = argparse.ArgumentParser(description="Try every command of a wheel in fresh environments.")
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for the environments")
    parser.add_argument("--extras", nargs="+", default=["bare", "train"], help="bare: no extra")
    options = parser.parse_args(argv)
    empty = options.work.resolve() / "empty"
    empty.mkdir(parents=True, exist_ok=True)
    print("| command | extra | --help | without flags | says |\n| --- | --- | --- | --- | --- |")
    for extra in options.extras:
        programs = install(options.wheel.resolve(), extra, options.work.resolve())
        print("\n".join(rows(extra, programs, empty)), flush=True)


if __name__ == "__main__":
    main()
