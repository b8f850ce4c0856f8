"""Inference over shards by its command line: killed at any moment, stopped, and by several processes."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from webdataset.writer import TarWriter

from lbm_lora import bundled
from standins import TINY, write_base

pytestmark = pytest.mark.e2e

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
LBM_LORA = ["-m", "lbm_lora.cli.main"]
PICTURES = sorted(bundled.PAIRS.glob("*.source.png"))[:6]
KEYS = [path.name.partition(".")[0] for path in PICTURES]


FAILING = """
import os
from pathlib import Path

if os.environ.get("LOCAL_RANK") == "1":
    replace, link = Path.replace, os.link

    def check(target):
        if Path(target).name == "001.tar.json":
            raise OSError(5, "Input/output error", str(target))

    def failing(self, target):
        check(target)
        return replace(self, target)

    def failing_link(source, target, **options):
        check(target)
        link(source, target, **options)

    Path.replace, os.link = failing, failing_link
"""
"""A disk on which the second process cannot write the record of the second shard."""


@pytest.fixture(scope="module")
def infer(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`infer` over three shards of two images with a TINY base in fp32; --output_path is missing."""
    folder = tmp_path_factory.mktemp("shards")
    base = write_base(folder / "base", TINY, dtype=torch.float32)
    for number in range(3):
        with TarWriter(str(folder / f"{number:03d}.tar"), encoder=False, mtime=0) as tar:
            for index in (2 * number, 2 * number + 1):
                tar.write({"__key__": KEYS[index], "source.png": PICTURES[index].read_bytes()})
    words = ["infer", "--base_model_path", str(base), "--source_shards", f"{folder}/{{000..002}}.tar", "--size", "64"]
    return [*LBM_LORA, *words, "--torch_dtype", "float", "--device", "cpu"]


@pytest.fixture(scope="module")
def unbroken(infer: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of one run in one process."""
    folder = tmp_path_factory.mktemp("unbroken") / "out"
    run([*infer, "--output_path", str(folder)])
    found = contents(folder)
    assert sorted(found) == sorted(
        ["infer.json", *(f"00{number}.tar{end}" for number in range(3) for end in ("", ".json"))]
    )
    return found


def start(words: Sequence[str], environment: Mapping[str, Path] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        env=ENVIRONMENT | {name: str(path) for name, path in (environment or {}).items()},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def run(words: Sequence[str]) -> str:
    """Run python to a good end; returns what it says on stdout."""
    done = start(words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def contents(folder: Path) -> dict[str, bytes]:
    """All files but what a killed process left unfinished."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".part"}


def signalled(infer: list[str], folder: Path, moment: str, name: str) -> str:
    """Python code of a run that sends itself a signal: before or after the n-th file takes its name, or within the
    n-th image.
    """
    when, number = moment.split()
    return f"""
import os, signal, sys
from pathlib import Path
from lbm_lora.cli.main import main
from lbm_lora.inference import shards

def wrapped(function):
    count = 0
    def counted(*arguments, **named):
        nonlocal count
        count += 1
        if count == {number} and {when!r} != "after":
            os.kill(os.getpid(), signal.{name})
        done = function(*arguments, **named)
        if count == {number} and {when!r} == "after":
            os.kill(os.getpid(), signal.{name})
        return done
    return counted

if {when!r} == "within":
    shards.encode_image = wrapped(shards.encode_image)
else:
    Path.replace = wrapped(Path.replace)
sys.exit(main({[*infer[2:], "--output_path", str(folder)]!r}))
"""


# file 1 is infer.json; then, for each shard, NAME.tar.json and NAME.tar
@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("moment", ["within 2", "after 3", "before 3", "within 4"])
def test_a_run_that_is_killed_goes_on_to_the_same_bytes(
    infer: list[str], unbroken: dict[str, bytes], tmp_path: Path, moment: str
) -> None:
    folder = tmp_path / "out"
    assert start(["-c", signalled(infer, folder, moment, "SIGKILL")]).returncode == -signal.SIGKILL
    done = {path.name: path.read_bytes() for path in folder.glob("*.tar")}
    assert done.items() <= unbroken.items()
    assert len(done) == (moment in ("after 3", "within 4"))
    said = run([*infer, "--output_path", str(folder)])
    assert f"of {3 - len(done)} shards into" in said
    assert re.search(rf"; {len(done)} shards? already existed\.", said)
    assert contents(folder) == unbroken


def test_sigterm_drops_the_shard_in_work_and_exits_with_0(
    infer: list[str], unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    said = run(["-c", signalled(infer, folder, "within 3", "SIGTERM")])
    assert said.startswith("Stopped by SIGTERM. Translated 2 images of 1 shard into")
    assert said.endswith("Run the same command to resume.\n")
    assert sorted(contents(folder)) == ["000.tar", "000.tar.json", "infer.json"]
    run([*infer, "--output_path", str(folder)])
    assert contents(folder) == unbroken


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4])
def test_several_processes_are_one(infer: list[str], unbroken: dict[str, bytes], tmp_path: Path, devices: int) -> None:
    """Four are more than there are shards."""
    folder = tmp_path / "out"
    words = [*infer, "--output_path", str(folder), "--devices", str(devices), "--strategy", "ddp"]
    assert run(words).count("Translated 6 images of 3 shards into") == 1
    assert contents(folder) == unbroken
    said = run(words)
    assert said.count("Translated 0 images of 0 shards into") == 1
    assert "3 shards already existed" in said
    (folder / "001.tar").unlink()
    assert "Translated 2 images of 1 shard into" in run(words)
    assert contents(folder) == unbroken


@pytest.mark.slow
@pytest.mark.faults
def test_an_error_of_one_process_ends_all(infer: list[str], tmp_path: Path) -> None:
    """The second process cannot write its record: the first one finishes its shards, and both end with exit code 2."""
    folder, patch = tmp_path / "out", tmp_path / "patch" / "sitecustomize.py"  # Python imports it in every process
    patch.parent.mkdir()
    patch.write_text(FAILING)
    done = start([*infer, "--output_path", str(folder), "--devices", "2"], {"PYTHONPATH": patch.parent})
    assert done.returncode == 2, done.stderr
    assert "process 1 has ended: " in done.stderr
    assert "001.tar.json cannot be written: Input/output error" in done.stderr
    assert sorted(path.name for path in folder.glob("*.tar")) == ["000.tar", "002.tar"]
