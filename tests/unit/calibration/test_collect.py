"""Statistics of a small LBM: what they hold, that a stopped run goes on, and what stops a run."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lbm_lora.calibration import CalibrationSettings, PartialFile, Statistics, collect, find_layers, save_statistics
from lbm_lora.errors import ConfigError, ImageError, InputError
from lbm_lora.model.build import LBMModel


class Listener:
    """A progress that counts, keeps the notes, and interrupts after a number of steps."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.total, self.done, self.notes, self._stop_after = 0, 0, list[str](), stop_after

    def start(self, total: int, what: str) -> None:
        self.total, self.done = total, 0

    def advance(self, n: int = 1) -> None:
        self.done += n
        if self.done > self._stop_after:
            raise KeyboardInterrupt

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_every_layer_has_weights_of_its_shape(model: LBMModel, statistics: Statistics) -> None:
    layers = find_layers(model.denoiser, lambda: model.denoise(torch.zeros(1, 4, 8, 8), torch.tensor([1000.0])))
    assert dict(statistics.layers) == layers
    assert len(statistics) == len(layers) > 50
    for name, weights in statistics.items():
        shape = layers[name].shape
        assert weights.inputs is not None
        assert weights.outputs is not None
        assert (weights.outputs.size, weights.outputs.repeat) == (shape[0], 1)
        columns = torch.Size(shape[1:]).numel()
        assert (weights.inputs.size, weights.inputs.repeat) == (columns, 1)
        assert (weights.inputs.dense is not None) == (columns <= (144 if columns > shape[1] else 32))
        assert (weights.outputs.dense is not None) == (shape[0] <= 32)
        assert weights.inputs.trace > 0
        assert weights.outputs.trace > 0
        assert weights.ridge == 1e-2


@pytest.fixture
def run(
    model: LBMModel, images: tuple[Path, ...], settings: CalibrationSettings, tmp_path: Path
) -> Callable[..., Statistics]:
    """Collect with the sums saved after every image."""

    def collected(listener: Listener, *, overwrite: bool = False, **changes: object) -> Statistics:
        partial = PartialFile(tmp_path / "s.safetensors", overwrite=overwrite)
        used = replace(settings, **changes)
        return collect(model, images, used, tuned="abc", partial=partial, save_every=0, progress=listener)

    return collected


def test_a_stopped_run_goes_on_to_the_same_bytes(
    run: Callable[..., Statistics], statistics: Statistics, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Listener(stop_after=2))  # in the second image
    partial = PartialFile(tmp_path / "s.safetensors")
    assert partial.path.name == "s.partial.safetensors"
    listener = Listener()
    gone_on = run(listener)
    assert listener.notes == [f"Resuming with 1 of 2 images from {partial.path}."]
    assert listener.total == listener.done == 2, "what was done before is no part of the time to come"
    save_statistics(statistics, tmp_path / "whole.safetensors")
    save_statistics(gone_on, tmp_path / "gone_on.safetensors")
    assert (tmp_path / "whole.safetensors").read_bytes() == (tmp_path / "gone_on.safetensors").read_bytes()
    partial.remove()
    assert not partial.path.exists()


def test_sums_of_another_run_are_not_used(run: Callable[..., Statistics], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Listener(stop_after=2))
    path = tmp_path / "s.partial.safetensors"
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"s\.partial\.safetensors holds the unfinished sums of a calibration"):
        run(Listener(), seed=6)
    assert path.read_bytes() == before
    listener = Listener(stop_after=0)
    with pytest.raises(KeyboardInterrupt):
        run(listener, seed=6, overwrite=True)
    assert listener.notes == [f"Replacing {path}, which is from a run with other inputs or settings."]


def test_what_cannot_be_measured(model: LBMModel, images: tuple[Path, ...], tmp_path: Path) -> None:
    half = replace(model, dtype=torch.float16)
    with pytest.raises(ConfigError, match=r"gradients exceed the range of fp16\. Use bf16 or float\.$"):
        collect(half, images)
    with pytest.raises(ImageError, match=r"lost\.png does not exist"):
        collect(model, [*images, tmp_path / "lost.png"])
    with pytest.raises(ConfigError, match="timestep 400 was not trained"):
        collect(model, images, CalibrationSettings(timesteps=(400,)))


def test_an_output_that_is_not_finite(model: LBMModel, images: tuple[Path, ...], settings: CalibrationSettings) -> None:
    broken = replace(model, denoiser=deepcopy(model.denoiser))
    broken.denoiser.conv_out.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"0\.png: the model's output at timestep 1000 has values that are not fin"):
        collect(broken, images, settings)
