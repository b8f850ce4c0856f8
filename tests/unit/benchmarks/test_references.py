"""The references do what they are taken for."""

from pathlib import Path

import pytest
import torch

from benchmarks import references
from benchmarks.pair import make_pair
from lbm_lora.checkpoint import open_checkpoint


@pytest.mark.parametrize("blocked", [False, True])
def test_the_bare_pass_adds_up_the_squares_of_the_whole_delta(tmp_path: Path, blocked: bool) -> None:
    pair = make_pair(tmp_path, scale=0.05)
    with open_checkpoint(pair.base) as base, open_checkpoint(pair.tuned) as tuned:
        expected = sum(float((tuned.read(key).double() - base.read(key).double()).square().sum()) for key in base.specs)
    found = references.bare_pass(base=str(pair.base), tuned=str(pair.tuned), threads=2, blocked=blocked)()
    assert found["sum_of_squares"] == pytest.approx(expected, rel=1e-5)


def test_copies_are_equal(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(torch.arange(1000).numpy().tobytes())
    targets = [tmp_path / "a", tmp_path / "b"]
    references.copy(source=str(source), targets=[str(path) for path in targets])()
    assert all(path.read_bytes() == source.read_bytes() for path in targets)


def test_full_matrices_that_do_not_fit_are_measured_thin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = make_pair(tmp_path, scale=0.05)
    settings = {"base": str(pair.base), "tuned": str(pair.tuned), "name": "denoiser.conv_in.weight"}
    assert references.svd(**settings, full=True)()["full"]
    monkeypatch.setattr(references, "memory", lambda: {"MemAvailable": 1000})
    assert not references.svd(**settings, full=True)()["full"]
