"""Run the interop tests of LoRAs with several versions of their readers: diffusers, PEFT, LyCORIS.

    python tools/interop.py [--work FOLDER] [--only "diffusers 0.35"]        # or: make interop

Makes a virtual environment for each set of versions in FOLDER (by default .venv-interop), on top of the environment
that runs this: torch and all else is shared, so that each takes seconds and some megabytes. An environment that is
there is used again. Prints a Markdown table, and exits with 1 if a test failed.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests/interop"
VERSIONS: Mapping[str, Sequence[str]] = {
    # transformers and PEFT of its time: it imports names that later ones do not have
    "diffusers 0.35": ("diffusers==0.35.2", "peft==0.17.1", "transformers==4.57.3", "lycoris-lora"),
    "diffusers 0.39": ("diffusers==0.39.0", "peft==0.21.2", "lycoris-lora"),
    "newest": ("diffusers", "peft", "lycoris-lora"),
}
"""Name of an environment -> what is installed in it."""
READERS = ("diffusers", "peft", "lycoris-lora")
_PASSED = "passed"


def made(name: str, work: Path) -> Path:
    """The Python of an environment, which is made if it is not there."""
    folder = work / name.replace(" ", "-")
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    done = folder / "installed.txt"
    wanted = " ".join(VERSIONS[name])
    if done.exists() and done.read_text(encoding="utf-8") == wanted:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--clear", folder], check=True)
    own = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    # found after what the environment has of its own
    (Path(own) / "shared.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    pip = [python, "-m", "pip", "install", "--quiet", "--upgrade", *VERSIONS[name]]
    subprocess.run(pip, check=True, stderr=subprocess.DEVNULL)
    done.write_text(wanted, encoding="utf-8")
    return python


def versions(python: Path) -> str:
    """`diffusers 0.35.2, peft 0.17.1, lycoris-lora 4.1.3`."""
    code = f"from importlib.metadata import version; print(', '.join(f'{{n}} {{version(n)}}' for n in {READERS!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def run(python: Path, report: Path) -> Mapping[str, Counter[str]]:
    """Test module -> how many of its tests passed, failed and were skipped."""
    files = sorted(TESTS.glob("test_*_loras.py"))
    # warnings of older versions are not ours
    pytest = [python, "-m", "pytest", "-q", "-p", "no:xdist", "-m", "interop", "-W", "ignore", f"--junitxml={report}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    subprocess.run([*pytest, *files], cwd=ROOT, env=environment, check=False, stdout=sys.stderr)
    return counts(ElementTree.parse(report).getroot())


def counts(report: ElementTree.Element) -> Mapping[str, Counter[str]]:
    """The outcomes in a JUnit report by test module."""
    found: dict[str, Counter[str]] = {}
    for case in report.iter("testcase"):
        kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
        outcome = "skipped" if kinds == {"skipped"} else "failed" if kinds else _PASSED
        found.setdefault(case.attrib["classname"].rpartition(".")[2], Counter())[outcome] += 1
    return found


def row(versions: str, found: Mapping[str, Counter[str]], modules: Sequence[str]) -> str:
    """The row of an environment in the table."""
    cells = [", ".join(f"{number} {kind}" for kind, number in sorted(found.get(m, Counter()).items())) for m in modules]
    return f"| {versions} | {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Make the environments, run the tests in each, and print the table."""
    parser = argparse.ArgumentParser(description="Run the interop tests with several versions of the readers.")
    parser.add_argument("--work", type=Path, default=ROOT / ".venv-interop", help="folder for the environments")
    parser.add_argument("--only", nargs="+", choices=VERSIONS, default=list(VERSIONS), help="these environments")
    options = parser.parse_args(argv)
    modules = [path.stem for path in sorted(TESTS.glob("test_*_loras.py"))]
    print(f"| versions | {' | '.join(modules)} |\n|{' --- |' * (len(modules) + 1)}", flush=True)
    failed = False
    for name in options.only:
        python = made(name, options.work.resolve())
        found = run(python, options.work / f"{name.replace(' ', '-')}.xml")
        print(row(versions(python), found, modules), flush=True)
        failed = failed or not found or any(outcomes["failed"] for outcomes in found.values())
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
