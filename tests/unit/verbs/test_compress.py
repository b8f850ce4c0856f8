"""`compress`: which base, which images, which names, and what comes out."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lbm_lora.errors import ConfigError, ImageError, OutputError, PairingError
from lbm_lora.files import file_digest
from lbm_lora.verbs import compress as module
from lbm_lora.verbs.compress import CompressResult, compress, compress_text, split_images
from standins import Lbm, write_base

FAST: dict[str, Any] = {"size": "300KB", "count": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def made(lbm: Lbm, tmp_path_factory: pytest.TempPathFactory) -> CompressResult:
    """A LoRA of the small model, base included; read only."""
    return compress(
        lbm.tuned, output=tmp_path_factory.mktemp("made") / "out", backbone_signature=str(lbm.backbone), **FAST
    )


def test_one_call_makes_base_statistics_lora_report_and_image(made: CompressResult) -> None:
    folder = made.adapter.parent
    assert made.adapter == folder / "tuned_lora.safetensors"
    assert made.base == folder / "exact_base.safetensors"
    assert made.statistics == folder / "calibration.safetensors"
    assert {made.page.name, made.comparison.name} == {"report.html", "comparison.png"}
    assert made.nbytes == made.adapter.stat().st_size <= 300_000
    assert (made.images, made.seen_images) == (1, 0)  # of the four bundled photos
    assert made.with_lora.mean_psnr > made.without.mean_psnr + 3
    lines = compress_text(made, False).splitlines()
    assert [line.split()[0] for line in lines] == ["Made", "Quality", "See", "Use", "Python", "ComfyUI"]
    assert f"on 1 image that it was not calibrated on; the base alone has {made.without.mean_psnr:.2f} dB." in lines[1]


@pytest.mark.slow
def test_a_rerun_in_the_folder(lbm: Lbm, made: CompressResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Base and statistics are used again; an earlier LoRA stays with its report until the new one is compared."""
    out = tmp_path / "out"
    shutil.copytree(made.adapter.parent, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again: dict[str, Any] = FAST | {"output": out, "size": "250KB", "also": "comfyui"}

    def failing(*_: object) -> None:
        raise ImageError("an image is gone")

    with monkeypatch.context() as patch:
        patch.setattr("lbm_lora.verbs.validate._warn_of_seen", failing)
        with pytest.raises(ImageError, match="is gone"):
            compress(lbm.tuned, **again)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    found = compress(lbm.tuned, **again)
    assert found.nbytes == (out / "tuned_lora.safetensors").stat().st_size <= 250_000
    document = json.loads((out / "report/report.json").read_text())
    assert document["provenance"]["digests"] == {"LoRA": file_digest(found.adapter)}
    assert document["outputs"]["loras"][0]["nbytes"] == found.nbytes
    assert (out / "tuned_lora.comfyui.safetensors").is_file()
    kept = ("exact_base.safetensors", "calibration.safetensors")
    assert all((out / name).read_bytes() == before[out / name] for name in kept)
    with pytest.raises(OutputError, match="holds statistics of another model, other images or other settings"):
        compress(lbm.tuned, **again, seed=1)


def test_a_base_that_it_was_not_tuned_from_is_refused(lbm: Lbm, made: CompressResult, tmp_path: Path) -> None:
    other, out = write_base(tmp_path / "other", seed=9), tmp_path / "out"
    with pytest.raises(PairingError, match=r"not the base.*base_model_path.*backbone_signature"):
        compress(lbm.tuned, output=out, base_model_path=other, **FAST)
    with pytest.raises(PairingError, match=r"is marked as an exact base and .* is not: the two are swapped"):
        compress(made.base, output=out, base_model_path=lbm.tuned, **FAST)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "../x"}, r"^name \.\./x must be a file name, not a path"),
        ({"size": "200"}, r"^size 200: 200 of what\? Give a unit: 200MB or 200KB\.$"),
    ],
)
def test_a_wrong_value_is_refused_at_once(lbm: Lbm, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compress(lbm.tuned, output=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("count", "held_out"), [(1, [0]), (3, [0, 1, 2]), (4, [3]), (9, [3, 7]), (40, range(3, 32, 4))]
)
def test_every_fourth_image_is_held_out(count: int, held_out: list[int]) -> None:
    images = [Path(f"{number}.png") for number in range(count)]
    seen, measured_on = split_images(images)
    assert measured_on == tuple(images[index] for index in held_out)
    assert seen == (tuple(images) if count < 4 else tuple(image for image in images if image not in measured_on))


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("relight.v2.ckpt", "relight.v2"),
        ("relighting/model.safetensors.index.json", "relighting"),
        ("relighting/model.fp16.safetensors", "relighting"),
        ("relighting", "relighting"),
        ("link", "link"),
        ("hf://user/relight", "relight"),
        ("hf://user/relight/model.safetensors@v2", "relight"),
        ("hf://user/relight/v3.safetensors", "v3"),
        (".", "work"),
    ],
)
def test_the_files_are_named_after_the_checkpoint_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, name: str
) -> None:
    (tmp_path / "work/relighting").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    Path("link").symlink_to("relighting")
    assert module._name_of(given, None) == name  # pyright: ignore[reportPrivateUsage]


def test_a_base_in_the_folder_comes_before_one_next_to_the_checkpoint(tmp_path: Path) -> None:
    tuned, out = tmp_path / "tuned/model.ckpt", tmp_path / "out"
    base_beside = module._base_beside  # pyright: ignore[reportPrivateUsage]
    for folder in (tuned.parent, out):
        folder.mkdir()
    assert base_beside(out, tuned) is None
    beside = tuned.with_name("exact_base.ckpt")
    beside.touch()
    assert base_beside(out, tuned) == base_beside(out, tuned.parent) == beside
    (out / "exact_base.safetensors").touch()
    assert base_beside(out, tuned) == out / "exact_base.safetensors"
