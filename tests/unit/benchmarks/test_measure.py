"""Measuring a process from outside."""

from pathlib import Path

import pytest

from benchmarks.measure import JobFailedError, Run, run_job, summary, warm
from benchmarks.pair import make_pair

SCALE = 0.05


def _run(seconds: float, anon_bytes: int = 0) -> Run:
    return Run(wall_s=seconds + 1, cpu_s=seconds, work_s=seconds, work_cpu_s=seconds, anon_bytes=anon_bytes)


def test_summary_has_medians_and_the_largest_memory() -> None:
    found = summary([_run(9, 5), _run(1, 7), _run(2, 3)])
    assert (found["work_s"], found["wall_s"], found["anon_bytes"]) == (2, 3, 7)
    assert [run["work_s"] for run in found["runs"]] == [9, 1, 2]


def test_warm_reads_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 12345)
    assert warm([path, path]) == 24690


def test_a_job_is_measured_in_its_own_process(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, scale=SCALE)
    settings = {"base": str(pair.base), "tuned": str(pair.tuned), "threads": 2, "blocked": True}
    run = run_job("bare_pass", settings)
    assert run.result["sum_of_squares"] > 0
    assert run.wall_s > run.work_s > 0
    assert run.anon_bytes > 2**25  # the import of torch alone


def test_a_job_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(JobFailedError, match="no_such_file"):
        run_job("svd", {"base": str(tmp_path / "no_such_file.safetensors"), "tuned": "", "name": "", "full": True})
