"""`calibrate`: what it measures, and how a stopped run goes on."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lbm_lora.calibration import Calibration, CalibrationSettings, Origin, PartialFile, Sums, load_statistics
from lbm_lora.calibration.collect import collect
from lbm_lora.checkpoint import fingerprint, open_checkpoint
from lbm_lora.errors import CheckpointError, ConfigError, ImageError, OutputError
from lbm_lora.imaging.digests import digests_of
from lbm_lora.progress import SILENT
from lbm_lora.verbs.calibrate import calibrate
from lbm_lora.verbs.layers import layers
from standins import Lbm

FAST: dict[str, Any] = {"size": 64, "timesteps": 1000.0, "probes": 1, "torch_dtype": torch.float32}


@pytest.fixture(scope="module")
def images(write_images: Callable[[int], Path]) -> Path:
    return write_images(5)


def test_it_measures_every_layer_on_evenly_spread_images(lbm: Lbm, images: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    calibrate(lbm.tuned, images, save_to=path, count=2, **FAST)
    statistics = load_statistics(path)
    names = [layer.name for layer in layers(lbm.tuned).layers]
    assert sorted(statistics) == sorted(names)
    attentions = sum(name.endswith("to_q") for name in names)
    assert len(statistics.inputs) + len(statistics.outputs) == 2 * len(names) - 2 * attentions
    with open_checkpoint(lbm.tuned) as checkpoint:
        assert statistics.origin.tuned == fingerprint(checkpoint.component()).digest
    assert statistics.image_digests == digests_of([images / "0.png", images / "2.png"]).each
    assert [one.name for one in tmp_path.iterdir()] == ["s.safetensors"]


def test_statistics_of_the_same_origin_are_taken_again(lbm: Lbm, images: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"

    def statistics(seed: int = 0, overwrite: bool = False) -> float:
        settings = CalibrationSettings(size=64, timesteps=(1000.0,), probes=1, seed=seed)
        how = Calibration(images=[images / "0.png"], settings=settings, dtype=torch.float32)
        with open_checkpoint(lbm.tuned) as tuned:
            how.file_at(path, tuned, overwrite=overwrite, progress=SILENT)
        return path.stat().st_mtime_ns

    before = statistics()
    assert statistics() == before
    with pytest.raises(OutputError, match=r"holds statistics of another model, other images or other settings"):
        statistics(seed=5)
    path.write_bytes(path.read_bytes().replace(b'"lbm_lora_statistics":"2"', b'"lbm_lora_statistics":"9"'))
    with pytest.raises(CheckpointError):
        statistics()
    statistics(overwrite=True)
    assert b'"lbm_lora_statistics":"2"' in path.read_bytes()


def test_a_stopped_run_goes_on(lbm: Lbm, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = partial(calibrate, lbm.tuned, images, count=2, **FAST)
    run(save_to=tmp_path / "whole.safetensors")
    monkeypatch.setattr("lbm_lora.calibration.measure_checkpoint.collect", partial(collect, save_every=0.0))
    save = PartialFile.save

    def stop(file: PartialFile, sums: Sums, origin: Origin) -> None:
        save(file, sums, origin)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(PartialFile, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            run(save_to=tmp_path / "s.safetensors")
    assert list(tmp_path.glob("*.partial.*"))
    run(save_to=tmp_path / "s.safetensors")
    assert (tmp_path / "s.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not list(tmp_path.glob("*.partial.*"))


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"save_to": "s.pt"}, OutputError, r"statistics are a \.safetensors file\.$"),
        ({"count": 6}, ConfigError, r"^count must be between 1 and 5, the number of images, got 6\.$"),
        ({"device": "mps"}, ConfigError, "the sums need fp64, which mps does not support"),
        ({"probes": 0}, ConfigError, "^probes must be greater than or equal to 1, got 0"),
        ({"images": "nowhere"}, ImageError, "does not exist"),
        ({"names": "attn1"}, ConfigError, "^names is for a module"),
    ],
)
def test_bad_input_is_found_first(
    lbm: Lbm, images: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    load = "lbm_lora.calibration.measure_checkpoint.load_model"
    monkeypatch.setattr(load, lambda *_, **__: pytest.fail("a model was loaded"))
    options: dict[str, Any] = {"images": images, **changes}
    with pytest.raises(error, match=text):
        calibrate(lbm.tuned, **options)
