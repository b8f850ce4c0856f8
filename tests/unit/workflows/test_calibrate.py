"""The workflow `calibrate`."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lbm_lora.calibration import Origin, PartialFile, Sums, load_statistics
from lbm_lora.calibration.collect import collect
from lbm_lora.checkpoint import fingerprint, open_checkpoint
from lbm_lora.configs.calibrate import CalibrateConfig
from lbm_lora.configs.layers import LayersConfig
from lbm_lora.errors import CheckpointError, ConfigError, ImageError, OutputError
from lbm_lora.imaging.digests import digests_of
from lbm_lora.workflows import calibrate
from lbm_lora.workflows.calibrate import measured, run
from lbm_lora.workflows.layers import run as list_layers
from standins import Lbm


@pytest.fixture
def config(lbm: Lbm, tmp_path: Path) -> CalibrateConfig:
    """Five images, of which two are used."""
    (tmp_path / "images").mkdir()
    draw = np.random.default_rng(0)
    for index in range(5):
        image = Image.fromarray(draw.integers(0, 256, (64, 64, 3), dtype=np.uint8))
        image.save(tmp_path / "images" / f"{index}.png")
    return CalibrateConfig(
        tuned_model_path=lbm.tuned,
        images=str(tmp_path / "images"),
        save_to=tmp_path / "s.safetensors",
        count=2,
        size=64,
        timesteps=(1000.0,),
        probes=1,
        device="cpu",
        torch_dtype="float",
    )


def test_it_measures_every_layer(config: CalibrateConfig, lbm: Lbm) -> None:
    result = run(config)
    statistics = load_statistics(result.statistics)
    listed = list_layers(LayersConfig(model_path=lbm.tuned))
    assert sorted(statistics) == sorted(layer.name for layer in listed.layers)
    assert result.nbytes == config.save_to.stat().st_size
    assert (result.layers, result.images, result.timesteps, result.probes) == (len(listed.layers), 2, (1000.0,), 1)
    attentions = sum(layer.name.endswith("to_q") for layer in listed.layers)
    assert result.moments == 2 * result.layers - 2 * attentions
    with open_checkpoint(lbm.tuned) as checkpoint:
        assert statistics.origin.tuned == fingerprint(checkpoint.component()).digest
    evenly_spread = [config.save_to.parent / "images" / name for name in ("0.png", "2.png")]
    assert statistics.origin.images == digests_of(evenly_spread).together
    assert statistics.image_digests == digests_of(evenly_spread).each
    assert [path.name for path in config.save_to.parent.glob("*.safetensors")] == ["s.safetensors"]


@pytest.mark.slow
def test_statistics_of_the_same_origin_are_taken_again(config: CalibrateConfig) -> None:
    path = measured(config)
    before = path.stat().st_mtime_ns
    assert measured(config).stat().st_mtime_ns == before
    with pytest.raises(OutputError, match=r"holds statistics of another model, other images or other settings"):
        measured(replace(config, seed=5))
    assert path.stat().st_mtime_ns == before
    path.write_bytes(path.read_bytes().replace(b'"lbm_lora_statistics":"2"', b'"lbm_lora_statistics":"9"'))
    with pytest.raises(CheckpointError):
        measured(config)
    assert path.stat().st_mtime_ns > before, "only the test has written it"
    assert b'"lbm_lora_statistics":"2"' in measured(replace(config, overwrite=True)).read_bytes()


@pytest.mark.parametrize("stops", [False, True])
def test_sums_are_saved_after_every_image_and_a_stopped_run_goes_on(
    config: CalibrateConfig, monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    whole = run(replace(config, save_to=config.save_to.with_name("whole.safetensors"))).statistics.read_bytes()
    monkeypatch.setattr(calibrate, "collect", partial(collect, save_every=0.0))
    save = PartialFile.save

    def stop(file: PartialFile, sums: Sums, origin: Origin) -> None:
        save(file, sums, origin)
        raise KeyboardInterrupt

    if stops:
        monkeypatch.setattr(PartialFile, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            run(config)
        monkeypatch.setattr(PartialFile, "save", save)
    assert run(config).statistics.read_bytes() == whole
    assert not list(config.save_to.parent.glob("*.partial.*"))


def test_bad_input_is_found_first(config: CalibrateConfig, lbm: Lbm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbm_lora.workflows.calibrate.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(OutputError, match=r"statistics are a \.safetensors file\.$"):
        run(replace(config, save_to=Path("s.pt")))
    with pytest.raises(OutputError, match="is an input of this command, and would be overwritten"):
        run(replace(config, save_to=lbm.tuned))
    with pytest.raises(ConfigError, match=r"^count must be between 1 and 5, the number of images, got 6\.$"):
        run(replace(config, count=6))
    with pytest.raises(ConfigError, match="the sums need fp64, which mps does not support"):
        run(replace(config, device="mps"))
    with pytest.raises(ConfigError, match="probes must be 1 or more, got 0"):
        run(replace(config, probes=0))
    with pytest.raises(ImageError, match="does not exist"):
        run(replace(config, images="nowhere"))
    for name in ("0.png", "2.png"):
        (Path(str(config.images)) / name).write_bytes(b"damaged")
    with pytest.raises(ImageError, match=r"^2 of 2 images cannot be read: 0\.png, 2\.png\. Repair or remove them\."):
        run(config)
