"""Compress: which base, which images, and what comes out."""

import json
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from lbm_lora.cli.present import present
from lbm_lora.configs.compress import CompressConfig
from lbm_lora.errors import ConfigError, ImageError, OutputError, PairingError
from lbm_lora.regular_file import file_digest
from lbm_lora.workflows import validate
from lbm_lora.workflows.compress import CompressResult, run, split_images
from standins import Lbm, write_base


@pytest.fixture(scope="module")
def made(lbm: Lbm, tmp_path_factory: pytest.TempPathFactory) -> CompressResult:
    """A LoRA of the small model, base included; read only."""
    folder = tmp_path_factory.mktemp("made")
    return run(config(lbm, output=folder / "out", backbone_signature=str(lbm.backbone)))


def config(lbm: Lbm, **changes: object) -> CompressConfig:
    values: dict[str, object] = {"tuned": lbm.tuned, "size": "300KB", "count": 1, **changes}
    return CompressConfig(**values)  # pyright: ignore[reportArgumentType]


def test_one_call_makes_base_statistics_lora_report_and_image(made: CompressResult) -> None:
    folder = made.adapter.parent
    assert made.adapter == folder / "tuned_lora.safetensors"
    assert made.base == folder / "exact_base.safetensors"
    assert made.statistics == folder / "calibration.safetensors"
    assert {made.page.name, made.comparison.name} == {"report.html", "comparison.png"}
    for path in (made.adapter, made.base, made.statistics, made.page, made.comparison):
        assert path.stat().st_size > 0
    assert made.nbytes == made.adapter.stat().st_size <= 300_000
    assert made.tuned_nbytes > made.nbytes


def test_the_lora_comes_closer_than_the_base_on_an_image_that_was_held_out(made: CompressResult) -> None:
    assert (made.images, made.seen_images) == (1, 0)  # of the four bundled photos
    assert made.with_lora.mean_psnr > made.without.mean_psnr + 3


def test_five_lines_say_it(made: CompressResult) -> None:
    lines = present("compress", made).splitlines()
    assert [line.split()[0] for line in lines] == ["Made", "Quality", "See", "Use", "Python", "ComfyUI"]
    assert f"on 1 image that it was not calibrated on; the base alone has {made.without.mean_psnr:.2f} dB." in lines[1]
    assert str(made.page) in lines[2]


@pytest.mark.slow
def test_an_earlier_lora_stays_with_its_report_until_the_new_one_is_compared(
    lbm: Lbm, made: CompressResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(made.adapter.parent, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = config(lbm, output=out, size="250KB", also=("comfyui",))
    with monkeypatch.context() as patch:
        patch.setattr(validate, "measured", lambda *_: tidied(made))
        with pytest.raises(ImageError, match="is gone"):
            run(again)
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
        (out / "tuned_lora.safetensors").rename(out / "mine.safetensors")
        before[out / "mine.safetensors"] = before.pop(out / "tuned_lora.safetensors")
        with pytest.raises(ImageError, match="is gone"):
            run(again)
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    found = run(again)
    assert found.nbytes == (out / "tuned_lora.safetensors").stat().st_size <= 250_000
    assert json.loads((out / "report/report.json").read_text())["provenance"]["digests"] == {
        "LoRA": file_digest(found.adapter)
    }
    assert (out / "tuned_lora.comfyui.safetensors").is_file()


def tidied(made: CompressResult) -> NoReturn:
    raise ImageError(f"{made.page} is gone")


@pytest.mark.slow
def test_a_base_in_the_folder_and_statistics_of_the_same_images_are_used_again(
    lbm: Lbm, made: CompressResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lbm_lora.workflows.calibrate._run", lambda *_: pytest.fail("measured again"))
    before = made.base.stat().st_mtime_ns
    again = run(config(lbm, output=made.adapter.parent, size="250KB", name="smaller"))
    assert (again.base, again.statistics) == (made.base, made.statistics)
    assert made.base.stat().st_mtime_ns == before
    assert again.adapter.name == "smaller_lora.safetensors"
    assert again.nbytes <= 250_000
    assert made.adapter.is_file()
    with pytest.raises(OutputError, match="holds statistics of another model, other images or other settings"):
        run(config(lbm, output=made.adapter.parent, seed=1))


def test_a_base_that_it_was_not_tuned_from_is_refused(lbm: Lbm, tmp_path: Path) -> None:
    other = write_base(tmp_path / "other", seed=9)
    with pytest.raises(PairingError, match=r"not the base.*base_model_path.*backbone_signature"):
        run(config(lbm, output=tmp_path / "out", base_model_path=other))
    assert not (tmp_path / "out").exists()


def test_a_name_is_no_path(lbm: Lbm, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"name \.\./x must be a file name, not a path"):
        run(config(lbm, output=tmp_path / "out", base_model_path=lbm.base, name="../x"))


@pytest.mark.parametrize(
    ("count", "held_out"), [(1, [0]), (3, [0, 1, 2]), (4, [3]), (9, [3, 7]), (40, range(3, 32, 4))]
)
def test_every_fourth_image_is_held_out(count: int, held_out: list[int]) -> None:
    images = [Path(f"{number}.png") for number in range(count)]
    seen, measured_on = split_images(images)
    assert measured_on == tuple(images[index] for index in held_out)
    assert seen == (tuple(images) if count < 4 else tuple(image for image in images if image not in measured_on))


def test_a_size_without_its_unit_is_asked_back_at_once(lbm: Lbm, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^size 200: 200 of what\? Give a unit: 200MB or 200KB\.$"):
        run(config(lbm, output=tmp_path / "out", size="200"))
    assert not (tmp_path / "out").exists()


def test_a_base_in_the_place_of_the_tuned_model_is_found_before_anything_is_measured(
    lbm: Lbm, made: CompressResult, tmp_path: Path
) -> None:
    with pytest.raises(PairingError, match=r"is marked as an exact base and .* is not: the two are swapped"):
        run(config(lbm, tuned=made.base, base_model_path=lbm.tuned, output=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
