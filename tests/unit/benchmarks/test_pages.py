"""The pages of measured numbers are made of the committed result files."""

from benchmarks.fidelity import page as fidelity
from benchmarks.perf import page as perf
from benchmarks.results import FOLDER, newest
from benchmarks.training import page as training


def test_every_page_can_be_made() -> None:
    assert perf.report(newest(FOLDER, command="")).startswith("# Performance")
    found = newest(FOLDER / "fidelity", command="")
    assert "held-out images" in fidelity.report(found["fidelity"], found.get("networks"))
    assert "steps of" in training.report(newest(FOLDER / "training", command=""))
