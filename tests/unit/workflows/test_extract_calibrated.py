"""The workflow `extract` with calibration: what it predicts, what it measures, and what it reaches."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from lbm_lora.adapter import load_adapter
from lbm_lora.calibration import load_statistics
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.configs.calibrate import CalibrateConfig
from lbm_lora.configs.extract import ExtractConfig
from lbm_lora.configs.validate import ValidateConfig
from lbm_lora.errors import CheckpointError, ConfigError, ImageError, InputError
from lbm_lora.extraction import ExtractedAdapter
from lbm_lora.imaging.digests import digests_of
from lbm_lora.progress import SILENT, LbmLoraWarning, Silent
from lbm_lora.workflows import calibrate
from lbm_lora.workflows.extract import check, extracted, run
from lbm_lora.workflows.validate import LORA
from lbm_lora.workflows.validate import run as validate
from standins import TINY, Lbm, base_tensors, tuned_tensors, write_lbm_yaml

LARGEST = 600_000  # bytes of a file with every delta


@pytest.fixture(scope="module")
def lbm(tmp_path_factory: pytest.TempPathFactory) -> Lbm:
    """A pair that differs in its ends and its middle alone: a quick extraction."""
    folder = tmp_path_factory.mktemp("pair")
    base, tuned = base_tensors(TINY, dtype=torch.bfloat16), tuned_tensors(TINY)
    changed = ("denoiser.mid_block", "denoiser.conv_", "denoiser.time_")
    for name, tensors in (
        ("base", base),
        ("tuned", base | {key: value for key, value in tuned.items() if key.startswith(changed)}),
    ):
        write_lbm_yaml(folder / name, TINY)
        save_file(tensors, folder / name / "model.safetensors")
    base_path, tuned_path = (folder / name / "model.safetensors" for name in ("base", "tuned"))
    return Lbm(backbone=folder, base=base_path, tuned=tuned_path)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smooth image and noise."""
    folder = tmp_path_factory.mktemp("images")
    slope = np.linspace(0, 255, 64)
    values = [
        np.stack([slope[:, None] + 0 * slope, 0 * slope[:, None] + slope, np.full((64, 64), 90.0)], axis=-1),
        np.random.default_rng(0).uniform(0, 255, (64, 64, 3)),
    ]
    for index, value in enumerate(values):
        Image.fromarray(value.astype(np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def statistics(lbm: Lbm, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("statistics") / "s.safetensors"
    calibrate.run(
        CalibrateConfig(
            tuned_model_path=lbm.tuned, images=str(images), save_to=path, size=64, probes=1, torch_dtype="float"
        )
    )
    return path


@pytest.fixture
def config(lbm: Lbm, statistics: Path, tmp_path: Path) -> ExtractConfig:
    return ExtractConfig(
        base_model_path=lbm.base,
        tuned_model_path=lbm.tuned,
        save_to=tmp_path / "l.safetensors",
        calibration=statistics,
        device="cpu",
    )


@pytest.mark.parametrize(
    ("flags", "dtype"), [({}, "F16"), ({"save_precision": "bf16"}, "BF16"), ({"calibration": None}, "BF16")]
)
def test_calibrated_files_are_fp16_where_nothing_else_is_asked_for(
    config: ExtractConfig, flags: dict[str, str | None], dtype: str
) -> None:
    changed = dataclasses.replace(config, rank=2, conv_rank=2, **flags)  # pyright: ignore[reportArgumentType]
    with safe_open(run(changed).adapter, "pt") as file:
        found = {file.get_slice(key).get_dtype() for key in file.keys() if not key.endswith("alpha")}  # noqa: SIM118
    assert found == {dtype}


def test_validate_knows_the_images_of_the_calibration(config: ExtractConfig, images: Path, tmp_path: Path) -> None:
    made = run(dataclasses.replace(config, rank=2, conv_rank=2, check=False))
    settings = json.loads(load_adapter(made.adapter).metadata.facts["lbm_lora_settings"])
    assert settings["calibration_images"] == " ".join(digests_of(sorted(images.iterdir())).each)
    (tmp_path / "photos").mkdir()
    Image.open(images / "0.png").save(tmp_path / "photos" / "renamed.bmp")
    Image.new("RGB", (64, 64), (90, 20, 60)).save(tmp_path / "photos" / "other.png")
    wanted = ValidateConfig(
        base_model_path=config.base_model_path,
        tuned_model_path=config.tuned_model_path,
        lora_path=made.adapter,
        images=str(tmp_path / "photos"),
        report=tmp_path / "report",
        num_inference_steps=(1,),
        size=64,
        device="cpu",
    )
    with pytest.warns(LbmLoraWarning) as said:
        result = validate(wanted)
    held_out = "a mean PSNR of [0-9.]+ dB at 1 step"
    assert re.fullmatch(
        r"1 of 2 images was used to make the LoRA \(renamed\.bmp\): these numbers flatter it\. Held out 1 image: "
        rf"{held_out}\.",
        str(said[0].message),
    )
    assert result.seen_images == ("renamed.bmp",)
    assert not validate(dataclasses.replace(wanted, images=str(tmp_path / "photos" / "other.png"))).seen_images


@pytest.mark.slow
def test_8_bits_say_more_in_the_same_bytes(config: ExtractConfig, tmp_path: Path) -> None:
    """Twice the ranks; and the file is what was measured, within the size that was asked for."""
    found = {
        precision: run(
            dataclasses.replace(
                config,
                save_to=tmp_path / f"{precision}.safetensors",
                save_precision=precision,  # pyright: ignore[reportArgumentType]
                max_size=("120kB",),
            )
        )
        for precision in ("fp16", "int8")
    }
    fp16, int8 = (found[precision].predicted for precision in ("fp16", "int8"))
    assert fp16 is not None
    assert int8 is not None
    assert int8.measured is not None
    assert int8.measured < 0.7 * (fp16.measured or 0)
    assert found["int8"].nbytes <= 120_000
    adapter = load_adapter(found["int8"].adapter)
    assert adapter.dtype == torch.int8
    assert {delta.dtype for delta in adapter.dense.values()} == {torch.float16}
    assert found["int8"].report.counts["lora"] == len(adapter.modules)
    report = validate(
        ValidateConfig(
            base_model_path=config.base_model_path,
            tuned_model_path=config.tuned_model_path,
            lora_path=found["int8"].adapter,
            report=tmp_path / "report",
        )
    ).report
    assert report.weights.relative_error == pytest.approx(found["int8"].report.relative_error, rel=1e-6)


def test_predictions_are_checked_and_corrected(config: ExtractConfig, tmp_path: Path) -> None:
    result = run(dataclasses.replace(config, max_size=("500kB", "900kB")))
    unchecked = run(dataclasses.replace(config, save_to=tmp_path / "u.safetensors", max_size=("500kB",), check=False))
    for one in (result, *result.further):
        assert one.predicted is not None
        assert one.predicted.of == "output"
        assert one.predicted.error == pytest.approx(one.predicted.measured)
        assert one.predicted.foreseen != pytest.approx(one.predicted.error, rel=0.01)
    assert unchecked.predicted is not None
    assert result.predicted is not None
    # settings of another length leave other bytes for the deltas
    assert unchecked.predicted.foreseen == pytest.approx(result.predicted.foreseen, rel=0.2)
    assert unchecked.predicted.measured is None
    assert unchecked.predicted.error == unchecked.predicted.foreseen
    assert unchecked.adapter.stat().st_size == pytest.approx(result.adapter.stat().st_size, rel=0.01)
    assert any(one.nbytes == result.predicted.nbytes and one.measured for one in result.sizes)


def test_the_file_says_its_method(config: ExtractConfig, tmp_path: Path) -> None:
    methods: dict[str, str] = {}
    errors: dict[str, float] = {}
    for name, calibration in (("plain", None), ("calibrated", config.calibration)):
        changes = {"save_to": tmp_path / f"{name}.safetensors", "calibration": calibration, "max_size": ("500kB",)}
        with safe_open(run(dataclasses.replace(config, **changes)).adapter, "pt") as file:
            header = file.metadata()
        methods[name] = json.loads(header["lbm_lora_settings"])["method"]
        errors |= json.loads(header["lbm_lora_errors"])
    assert methods == {"plain": "plain", "calibrated": "calibrated"}
    assert {"predicted_weights_error", "predicted_output_error"} <= errors.keys()


@pytest.mark.slow
def test_a_psnr_is_reached_by_every_image(config: ExtractConfig, images: Path, tmp_path: Path) -> None:
    nothing = run(
        dataclasses.replace(config, save_to=tmp_path / "n.safetensors", max_size=("250kB",), images=str(images))
    )
    assert nothing.images is not None
    target = nothing.images.worst_psnr + 6
    result = run(dataclasses.replace(config, min_psnr=target, images=str(images)))
    found = result.images
    assert found is not None
    assert found.predicted_psnr is not None
    assert found.count == 2
    assert target <= found.worst_psnr <= target + 6
    assert found.worst_psnr <= found.mean_psnr
    assert nothing.nbytes < result.nbytes < LARGEST
    again = ValidateConfig(
        base_model_path=config.base_model_path,
        tuned_model_path=config.tuned_model_path,
        lora_path=result.adapter,
        images=str(images),
        num_inference_steps=(1,),
        device="cpu",
    )
    with pytest.warns(LbmLoraWarning, match="2 of 2 images were used to make the LoRA"):
        report = validate(again).report
    assert report.outputs is not None
    (summary,) = [entry for entry in report.outputs.summary if entry.variant == LORA]
    assert float(summary.worst_psnr) == pytest.approx(found.worst_psnr, abs=0.05)
    assert (float(summary.mean_psnr), summary.worst_image) == (
        pytest.approx(found.mean_psnr, abs=0.05),
        found.worst_image,
    )
    with safe_open(result.adapter, "pt") as file:
        errors = json.loads(file.metadata()["lbm_lora_errors"])
    assert errors["measured_worst_psnr"] == pytest.approx(found.worst_psnr, rel=1e-4)


def test_calibration_images_are_measured_and_compared(config: ExtractConfig, images: Path) -> None:
    alone = dataclasses.replace(config, calibration=None, calibration_images=str(images), min_psnr=20.0, refit=False)
    result = run(alone)
    assert result.images is not None
    assert result.images.count == 2
    assert result.images.worst_psnr >= 20
    assert sorted(path.name for path in config.save_to.parent.glob("*.safetensors")) == [
        "l.safetensors",
        "l_calibration.safetensors",
    ]


@pytest.mark.slow
def test_a_refit_replaces_the_file_by_a_better_one(config: ExtractConfig, images: Path, tmp_path: Path) -> None:
    alike = [tmp_path / f"{seed}.png" for seed in range(6)]
    for seed, path in enumerate(alike):
        values = np.random.default_rng(0).uniform(0, 200, (8, 8, 3)) + 10 * seed  # one image in several exposures
        Image.fromarray(values.astype(np.uint8)).resize((64, 64)).save(path)
    wanted = dataclasses.replace(config, rank=1, conv_rank=1, save_precision="int8")
    found: list[ExtractedAdapter] = []
    with open_checkpoint(config.base_model_path) as base, open_checkpoint(config.tuned_model_path) as tuned:
        for name, learnt in (("given", ()), ("refitted", alike)):
            found += extracted(
                wanted,
                *check(wanted),
                base,
                tuned,
                [tmp_path / f"{name}.safetensors"],
                statistics=lambda: load_statistics(wanted.statistics or Path()),
                images=alike[:1],
                refit_images=learnt,
                progress=SILENT,
            )
    given, made = found
    before, after = tmp_path / "given.safetensors", tmp_path / "refitted.safetensors"
    assert after.stat().st_size <= before.stat().st_size + 2000  # of metadata
    assert given.predicted is not None
    assert made.predicted is not None
    assert made.predicted.error == made.predicted.measured != given.predicted.measured  # at the check points
    with safe_open(before, "pt") as first, safe_open(after, "pt") as second:
        for name in first.keys():  # noqa: SIM118
            assert torch.equal(first.get_tensor(name), second.get_tensor(name)) or not name.endswith(".int8"), name
    errors = json.loads(load_adapter(after).metadata.facts["lbm_lora_errors"])
    assert errors["held_output_error"] < errors["held_output_error_before_refit"]
    assert errors["predicted_output_error"] == pytest.approx(made.predicted.error, rel=1e-4)
    assert errors["relative_error"] == pytest.approx(made.ledger.total().relative_error, rel=1e-4)
    assert made.ledger.total().relative_error != given.ledger.total().relative_error
    assert made.chosen is not None
    assert given.chosen is not None
    assert made.chosen.images is not None
    assert made.chosen.images != given.chosen.images


def test_a_refit_that_is_stopped_leaves_the_old_file(
    config: ExtractConfig, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.save_to.write_bytes(b"")
    seen: list[list[str]] = []

    def stop(found: list[ExtractedAdapter], *_: object, **__: object) -> None:
        (one,) = found
        assert one.output.path is not None
        assert one.output.path.stat().st_size > 0
        seen.append([path.name for path in config.save_to.parent.iterdir() if path.is_file()])
        raise KeyboardInterrupt

    monkeypatch.setattr("lbm_lora.workflows.refit.refitted", stop)
    alone = dataclasses.replace(config, calibration=None, calibration_images=str(images), rank=1, conv_rank=1)
    with pytest.raises(KeyboardInterrupt):
        run(dataclasses.replace(alone, check=False, overwrite=True))
    assert sorted(seen[0]) == ["l.safetensors", "l_calibration.safetensors"]
    assert config.save_to.read_bytes() == b""


@pytest.mark.slow
def test_a_refit_needs_an_image_to_hold_out(config: ExtractConfig, images: Path) -> None:
    class Notes(Silent):
        def __init__(self) -> None:
            self.found: list[str] = []

        def note(self, message: str) -> None:
            self.found.append(message)

    notes = Notes()
    alone = dataclasses.replace(
        config, calibration=None, calibration_images=str(images / "0.png"), rank=1, conv_rank=1, check=False
    )
    run(alone, notes)
    assert "Biases, norms and ranks are not refitted: this needs two images or more" in " ".join(notes.found)


def test_an_error_of_the_output_is_reached(config: ExtractConfig) -> None:
    result = run(dataclasses.replace(config, max_output_error=0.02))
    assert result.predicted is not None
    assert result.predicted.measured is not None
    assert 0.01 < result.predicted.measured <= 0.02


def test_what_cannot_be_reached_is_said_and_nothing_is_written(config: ExtractConfig, images: Path) -> None:
    text = r"^min_psnr 190 is out of reach: the best file, with every delta dense, gives \d+\.\d\d dB .* Ask for less"
    with pytest.raises(InputError, match=text):
        run(dataclasses.replace(config, min_psnr=190.0, images=str(images)))
    text = r"^max_output_error 1e-08 is out of reach: the best file, .*, has an error of \d.* in this precision\."
    with pytest.raises(InputError, match=text):
        run(dataclasses.replace(config, max_output_error=1e-8))
    assert list(config.save_to.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"min_psnr": 40.0},
            r"^min_psnr needs images: add calibration_images, or calibration and images\.$",
        ),
        ({"min_psnr": 40.0, "calibration": None, "images": "x"}, r"^images needs calibration; for other LoRAs"),
        ({"max_output_error": 0.1, "calibration": None}, r"^max_output_error needs the denoiser's output: add"),
        ({"max_error": 0.1}, r"^max_error limits the weight error, but calibration measures"),
        ({"min_psnr": 40.0, "max_size": ("1MB",), "images": "x"}, r"^max_size and min_psnr both choose the ranks"),
        ({"calibration_images": "x"}, r"^calibration and calibration_images both weight the errors"),
        ({"max_size": ("huge",)}, r"^max_size must be a file size such as 200MB or 1\.5GB, got huge\.$"),
        ({"max_size": ("1MB", "1 MB")}, r"^1MB 1MB: give each rank or size only once\.$"),
        ({"keep_energy": 1.5}, r"^keep_energy must be above 0 and at most 1 "),
    ],
)
def test_what_does_not_go_together(
    config: ExtractConfig, changes: dict[str, object], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lbm_lora.workflows.extract.open_checkpoint", lambda _: pytest.fail("a file was opened"))
    with pytest.raises(ConfigError, match=text):
        run(dataclasses.replace(config, **changes))


def test_bad_images_are_found_first(config: ExtractConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbm_lora.workflows.extract.open_checkpoint", lambda _: pytest.fail("a file was opened"))
    with pytest.raises(ImageError, match="nowhere does not exist"):
        run(dataclasses.replace(config, min_psnr=40.0, images="nowhere"))


def test_statistics_of_another_model_are_refused(config: ExtractConfig, lbm: Lbm, tmp_path: Path) -> None:
    other = dataclasses.replace(config, tuned_model_path=lbm.base, base_model_path=lbm.tuned)
    with pytest.raises(CheckpointError, match="was measured on another model than"):
        run(dataclasses.replace(other, max_size=("500kB",)))
    assert list(tmp_path.iterdir()) == []
