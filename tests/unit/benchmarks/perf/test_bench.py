"""Commands as jobs, and two of them side by side."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.measure import Run
from benchmarks.perf import bench as module
from benchmarks.perf.bench import Bench, Job, Options
from benchmarks.perf.pair import Pair


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench whose jobs write their outputs in this process and take 3 s."""
    pair = Pair(base=tmp_path / "base", tuned=tmp_path / "tuned", facts={})
    pair.base.write_bytes(b"x" * 10)
    pair.tuned.write_bytes(b"x" * 10)
    bench = Bench(Options(work=tmp_path, repeats=2))
    monkeypatch.setitem(bench.__dict__, "pair", pair)  # a cached property
    return bench


def test_extract_reads_both_and_writes_a_lora_and_a_sidecar(bench: Bench) -> None:
    job = bench.extract(Path("a/lora.safetensors"), save_precision="float")
    line: Any = job.settings["line"]
    assert line[:5] == [
        "extract",
        "--base_model_path",
        str(bench.pair.base),
        "--tuned_model_path",
        str(bench.pair.tuned),
    ]
    assert line[-2:] == ["--save_precision", "float"]
    assert [path.name for path in job.outputs] == ["lora.safetensors", "lora_config.yaml"]
    assert "lbm_lora.workflows.extract" in job.imports


def test_several_ranks_are_several_files(bench: Bench) -> None:
    job = bench.extract(Path("a/lora.safetensors"), ranks=(1, 2))
    assert [path.stem for path in job.outputs][::2] == ["lora_r1", "lora_r2"]


def test_jobs_run_in_turns_and_their_outputs_are_dropped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[object] = []

    def run_job(function: object, settings: dict[str, Any], **_: object) -> Run:
        order.append(settings["name"])
        bench.path("out").write_bytes(b"y" * 7)
        return Run(wall_s=3, cpu_s=3, work_s=1, work_cpu_s=1, anon_bytes=1)

    monkeypatch.setattr(module, "run_job", run_job)
    jobs = {name: Job(function=dict, settings={"name": name}, inputs=(bench.pair.base,), outputs=(bench.path("out"),))
            for name in ("a", "b")}  # fmt: skip
    found = bench.side_by_side(jobs)
    assert order == ["a", "b", "a", "b"]
    assert (found["a"]["wall_s"], found["a"]["input_bytes"], found["b"]["output_bytes"]) == (3, 10, 7)
    bench.clean()
    assert not bench.path("out").exists()
