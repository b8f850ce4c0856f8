"""Whatever is wrong with an input ends in one line and exit code 2, and changes nothing."""

import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from faults.goods import Goods
from faults.harness import Worker, contents, stamps
from faults.matrix import Case, cases
from safetensors import safe_open

pytestmark = pytest.mark.faults

SAMPLE = 60
"""Cases of the default run: one of each kind of input, then others, from a seeded shuffle."""


def fault_of(case: Case, folder: Path, goods: Goods, worker: Worker) -> str:
    """What a command did wrong with a case; empty if nothing."""
    argv = case.prepare(folder)
    before, inputs = contents(folder), stamps(goods.folder)
    outcome = worker.run(argv)
    problems: list[str] = []
    if outcome.code not in case.codes:
        problems.append(f"exit code {outcome.code}, not {sorted(case.codes)}")
    if "Traceback" in outcome.err or "Out of memory" in outcome.err:
        problems.append("a traceback or no memory")
    if outcome.code == 2:
        if len(outcome.errors) != 1 or outcome.err.splitlines()[-1:] != outcome.errors:
            problems.append("not one line of error")
        elif not outcome.errors[0].isprintable():
            problems.append("an error that is not printable")
        after = contents(folder)
        if after != before:
            problems.append(f"changed {sorted(set(before.items()) ^ set(after.items()))[:4]}")
    else:
        problems += [
            f"{path.name} is not finite"
            for path in folder.glob("out.safetensors")
            if path.is_file() and not_finite(path)
        ]
        left = [path.name for path in folder.rglob(".*.part")]
        problems += [f"left {left}"] if left else []
    if stamps(goods.folder) != inputs:
        problems.append("CHANGED ITS INPUTS")
    if (folder / "ran").exists() or Path("ran").exists():
        problems.append("RAN A COMMAND")
    return f"{case.name}: {'; '.join(problems)}: {outcome.err[-400:]!r}" if problems else ""


def not_finite(path: Path) -> bool:
    with safe_open(path, "pt") as file:
        tensors = [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118
    return any(tensor.is_floating_point() and not torch.isfinite(tensor.float()).all() for tensor in tensors)


def faults_of(chosen: list[Case], folder: Path, goods: Goods, worker: Worker) -> list[str]:
    found: list[str] = []
    for number, case in enumerate(chosen):
        place = folder / str(number)
        place.mkdir()
        fault = fault_of(case, place, goods, worker)
        if fault:
            found.append(fault)
        else:
            shutil.rmtree(place)  # those of a complete run would fill a disk
    return found


def sample_of(everything: list[Case]) -> list[Case]:
    shuffled = random.Random(0).sample(everything, len(everything))
    of_kind = {case.kind.partition(" of ")[0]: case for case in shuffled}
    others = [case for case in shuffled if case not in of_kind.values()]
    return [*of_kind.values(), *others[: SAMPLE - len(of_kind)]]


def test_a_sample_of_the_matrix(goods: Goods, worker: Worker, tmp_path: Path) -> None:
    everything = cases(goods)
    assert len(everything) > 1500
    chosen = sample_of(everything)
    assert len(chosen) == SAMPLE
    assert faults_of(chosen, tmp_path, goods, worker) == []


@pytest.mark.slow
def test_the_whole_matrix(goods: Goods, worker: Worker, tmp_path: Path) -> None:
    part = os.environ.get("FAULTS", "")
    chosen = [case for case in cases(goods) if part in case.name]
    faults = faults_of(chosen, tmp_path, goods, worker)
    assert faults == [], f"{len(faults)} of {len(chosen)}"
