"""A process that works for long needs no more memory than one that has just warmed up. See `load.py`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.faults, pytest.mark.slow]

TESTS = Path(__file__).parents[1]


def measured(*words: str) -> dict[str, Any]:
    """Run `load.py` in a process of its own, where nothing is instrumented."""
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "faults.load", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_cycles_of_load_inject_translate_and_eject_do_not_grow() -> None:
    found = measured("cycles", "--cycles", "200", "--warm_up", "20")
    assert found["growth"] < 0.01, found


@pytest.mark.parametrize("words", [["shards"], ["folder"], ["folder", "--compare"]], ids=" ".join)
def test_a_thousand_images_stream(words: list[str]) -> None:
    """What a folder needs for each image is its paths and its row of the result: a few kilobytes."""
    found = measured(*words, "--images", "1000")
    assert found["late"] - found["early"] < 16 * 2**20, found
