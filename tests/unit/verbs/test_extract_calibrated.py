"""`extract` with calibration: what it predicts, what it measures, and what it reaches."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lbm_lora.adapter import load_adapter
from lbm_lora.errors import CheckpointError, ImageError, InputError
from lbm_lora.extraction import ExtractedAdapter
from lbm_lora.imaging.digests import digests_of
from lbm_lora.progress import Silent
from lbm_lora.verbs.adapters import MeasuredAdapter
from lbm_lora.verbs.calibrate import calibrate
from lbm_lora.verbs.extract import extract, extract_several
from standins import TINY, Lbm, base_tensors, tuned_tensors, write_lbm_yaml


@pytest.fixture(scope="module")
def lbm(tmp_path_factory: pytest.TempPathFactory) -> Lbm:
    """A pair that differs in its ends and its middle alone: a quick extraction."""
    folder = tmp_path_factory.mktemp("pair")
    base, tuned = base_tensors(TINY, dtype=torch.bfloat16), tuned_tensors(TINY)
    changed = ("denoiser.mid_block", "denoiser.conv_", "denoiser.time_")
    tuned = base | {key: value for key, value in tuned.items() if key.startswith(changed)}
    for name, tensors in (("base", base), ("tuned", tuned)):
        write_lbm_yaml(folder / name, TINY)
        save_file(tensors, folder / name / "model.safetensors")
    paths = [folder / name / "model.safetensors" for name in ("base", "tuned")]
    return Lbm(backbone=folder, base=paths[0], tuned=paths[1])


@pytest.fixture(scope="module")
def images(write_images: Callable[[int], Path]) -> Path:
    return write_images(2)


@pytest.fixture(scope="module")
def statistics(lbm: Lbm, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("statistics") / "s.safetensors"
    calibrate(lbm.tuned, images, save_to=path, size=64, probes=1, torch_dtype="float")
    return path


@pytest.fixture
def make(lbm: Lbm, statistics: Path) -> Callable[..., MeasuredAdapter]:
    """`make(rank=2)`: a calibrated LoRA."""
    given: dict[str, Any] = {"calibration": statistics}
    return lambda **options: extract(lbm.base, lbm.tuned, **(given | options))


Make = Callable[..., MeasuredAdapter]


@pytest.mark.parametrize(("flags", "dtype"), [({}, "F16"), ({"calibration": None}, "BF16")])
def test_calibrated_files_are_fp16_and_say_their_method_and_images(
    make: Make, images: Path, tmp_path: Path, flags: dict[str, Any], dtype: str
) -> None:
    lora = make(rank=2, conv_rank=2, check=False, save_to=tmp_path / "l.safetensors", **flags)
    with safe_open(tmp_path / "l.safetensors", "pt") as file:
        stored = {file.get_slice(key).get_dtype() for key in file.keys() if not key.endswith("alpha")}  # noqa: SIM118
    assert stored == {dtype}
    settings = json.loads(lora.metadata.facts["lbm_lora_settings"])
    assert settings["method"] == ("plain" if flags else "calibrated")
    digests = " ".join(digests_of(sorted(images.iterdir())).each)
    assert settings.get("calibration_images") == (None if flags else digests)


def test_predictions_are_checked_and_corrected(lbm: Lbm, statistics: Path, make: Make) -> None:
    loras = extract_several(lbm.base, lbm.tuned, calibration=statistics, max_size=("500kB", "900kB"))
    for one in loras:
        assert one.predicted is not None
        assert one.predicted.of == "output"
        assert one.predicted.error == pytest.approx(one.predicted.measured)
        assert one.predicted.foreseen != pytest.approx(one.predicted.error, rel=0.01)
    unchecked = make(max_size="500kB", check=False).predicted
    assert unchecked is not None
    assert unchecked.measured is None
    assert unchecked.error == unchecked.foreseen


@pytest.mark.slow
def test_a_psnr_is_reached_by_every_image(make: Make, images: Path) -> None:
    nothing = make(max_size="250kB", images=images).trial
    assert nothing is not None
    target = nothing.worst_psnr + 6
    trial = make(min_psnr=target, images=images).trial
    assert trial is not None
    assert trial.count == 2
    assert target <= trial.worst_psnr <= min(target + 6, trial.mean_psnr)


def test_an_error_of_the_output_is_reached_or_refused(make: Make, images: Path, tmp_path: Path) -> None:
    predicted = make(max_output_error=0.02).predicted
    assert predicted is not None
    assert predicted.measured is not None
    assert 0.01 < predicted.measured <= 0.02
    text = r"^min_psnr 190 is out of reach: the best file, with every delta dense, gives \d+\.\d\d dB .* Ask for less"
    with pytest.raises(InputError, match=text):
        make(min_psnr=190.0, images=images, save_to=tmp_path / "l.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_statistics_of_images_stay_if_the_extraction_fails_and_are_used_again(
    lbm: Lbm, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "l.safetensors"

    def stop(loras: Sequence[ExtractedAdapter], *_: object, **__: object) -> None:
        raise KeyboardInterrupt

    options: dict[str, Any] = {"calibration_images": images, "rank": 1, "conv_rank": 1, "check": False}
    with monkeypatch.context() as patched:
        patched.setattr("lbm_lora.refinement.refit.refitted", stop)
        with pytest.raises(KeyboardInterrupt):
            extract(lbm.base, lbm.tuned, save_to=path, **options)
    assert [one.name for one in tmp_path.iterdir()] == ["l_calibration.safetensors"]
    monkeypatch.setattr("lbm_lora.calibration.measure_checkpoint.collect", lambda *_, **__: pytest.fail("measured"))
    extract(lbm.base, lbm.tuned, save_to=path, refit=False, **options)
    assert path.exists()


@pytest.mark.slow
def test_a_refit_replaces_the_lora_by_a_better_one(
    lbm: Lbm, write_images: Callable[[int], Path], tmp_path: Path
) -> None:
    images, path = write_images(8), tmp_path / "l.safetensors"
    extract(lbm.base, lbm.tuned, save_to=path, calibration_images=images, rank=1, conv_rank=1)
    errors = json.loads(load_adapter(path).metadata.facts["lbm_lora_errors"])
    assert errors["held_output_error"] < errors["held_output_error_before_refit"]


@pytest.mark.slow
def test_a_refit_needs_an_image_to_hold_out(lbm: Lbm, images: Path) -> None:
    class Notes(Silent):
        def __init__(self) -> None:
            self.texts: list[str] = []

        def note(self, message: str) -> None:
            self.texts.append(message)

    notes = Notes()
    extract(lbm.base, lbm.tuned, calibration_images=images / "0.png", rank=1, check=False, progress=notes)
    assert "Biases, norms and ranks are not refitted: this needs two images or more" in " ".join(notes.texts)


def test_bad_images_and_statistics_are_refused(lbm: Lbm, make: Make, statistics: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="nowhere does not exist"):
        make(min_psnr=40.0, images="nowhere")
    with pytest.raises(CheckpointError, match="was measured on another model than"):
        extract(lbm.tuned, lbm.base, calibration=statistics, save_to=tmp_path / "l.safetensors")
    assert list(tmp_path.iterdir()) == []
