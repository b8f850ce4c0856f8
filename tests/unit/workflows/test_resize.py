"""The workflow `resize`: from files to files, with and without statistics and a network."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lbm_lora.adapter import load_adapter, save_adapter
from lbm_lora.calibration import load_statistics, save_statistics
from lbm_lora.configs.calibrate import CalibrateConfig
from lbm_lora.configs.extract import ExtractConfig
from lbm_lora.configs.resize import ResizeConfig
from lbm_lora.errors import AdapterError, CheckpointError, ConfigError, InputError, OutputError, PatternError
from lbm_lora.progress import LbmLoraWarning
from lbm_lora.workflows import calibrate, extract
from lbm_lora.workflows.resize import run
from standins import TINY, Lbm, base_tensors, tuned_tensors, write_lbm_yaml


@pytest.fixture(scope="module")
def lbm(tmp_path_factory: pytest.TempPathFactory) -> Lbm:
    """A pair that differs in its ends and its middle alone: a small LoRA."""
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
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resize")


@pytest.fixture(scope="module")
def lora(lbm: Lbm, folder: Path) -> Path:
    config = ExtractConfig(
        base_model_path=lbm.base, tuned_model_path=lbm.tuned, save_to=folder / "lora.safetensors", rank=8, device="cpu"
    )
    return extract.run(config).adapter


@pytest.fixture(scope="module")
def image(folder: Path) -> Path:
    values = np.random.default_rng(0).uniform(0, 255, (64, 64, 3))
    Image.fromarray(values.astype(np.uint8)).save(folder / "a.png")
    return folder / "a.png"


@pytest.fixture(scope="module")
def statistics(lbm: Lbm, image: Path, folder: Path) -> Path:
    path = folder / "statistics.safetensors"
    config = CalibrateConfig(
        tuned_model_path=lbm.tuned, images=str(image), save_to=path, size=64, probes=1, torch_dtype="float"
    )
    calibrate.run(config)
    return path


@pytest.fixture
def config(lora: Path, tmp_path: Path) -> ResizeConfig:
    return ResizeConfig(lora_path=lora, save_to=tmp_path / "small.safetensors", device="cpu")


def settings_of(path: Path) -> dict[str, Any]:
    return json.loads(load_adapter(path).metadata.facts["lbm_lora_settings"])


def test_a_lora_gets_other_ranks_and_keeps_its_precision_and_origin(config: ResizeConfig, lora: Path) -> None:
    result = run(dataclasses.replace(config, rank=3))
    before, after = load_adapter(lora), load_adapter(result.adapter)
    assert (result.linear_rank, result.conv_rank) == (3, 2)
    assert (result.linear_rank_before, result.conv_rank_before) == (8, 4)
    assert result.nbytes == result.adapter.stat().st_size < result.nbytes_before == lora.stat().st_size
    assert {module.up.dtype for module in after.modules.values()} == {torch.bfloat16}
    assert after.metadata.base_fingerprint == before.metadata.base_fingerprint
    assert after.metadata.tuned_fingerprint == before.metadata.tuned_fingerprint
    assert 0 < result.resize_error < 1
    layers = {one.name: one for one in result.layers}
    assert len(layers) == len(before)
    assert all((one.rank_before or 0) >= (one.rank or 0) for one in layers.values())
    assert result.left_out == ()
    assert settings_of(result.adapter)["resized_from"] == lora.name


def test_several_sizes_give_several_files(config: ResizeConfig, lora: Path) -> None:
    whole = lora.stat().st_size
    wanted = [f"{round(whole * share / 1000)}KB" for share in (0.4, 0.3)]
    result = run(dataclasses.replace(config, max_size=tuple(wanted)))
    for one, word in zip((result, *result.further), wanted, strict=True):
        assert one.adapter.name == f"small_{word}.safetensors"
        assert 0.95 <= one.nbytes / (1000 * int(word.removesuffix("KB"))) <= 1
    assert result.resize_error < result.further[0].resize_error


def test_a_larger_rank_keeps_every_layer_and_says_so(config: ResizeConfig, lora: Path) -> None:
    result = run(dataclasses.replace(config, rank=64))
    before, after = load_adapter(lora), load_adapter(result.adapter)
    count = len(before.modules)
    assert result.notes == (f"{count} layers of {count} had no more ranks than requested and are kept as they are.",)
    assert result.resize_error == 0
    assert result.predicted.error == 0
    for name, module in before.modules.items():
        assert torch.equal(module.up, after.modules[name].up)


@pytest.mark.parametrize(
    ("changes", "gone", "note"),
    [
        ({"exclude": ("re:bias$",)}, lambda name: name.endswith(".bias"), "in --exclude"),
        ({"include": ("attn1",)}, lambda name: "attn1" not in name, "not in --include"),
        ({"dense": False}, lambda name: name.endswith(".bias") or "norm" in name, "dense deltas are switched off"),
    ],
)
def test_patterns_leave_out_what_is_listed(config: ResizeConfig, changes: Any, gone: Any, note: str) -> None:
    given = load_adapter(config.lora_path)
    result = run(dataclasses.replace(config, rank=64, **changes))
    assert sorted(result.left_out) == sorted(filter(gone, given.params))
    assert set(load_adapter(result.adapter).params) == {name for name in given.params if not gone(name)}
    assert f"Left out {len(result.left_out)} deltas: {note}." in result.notes


def test_statistics_weigh_errors_and_a_base_measures_them(
    config: ResizeConfig, lbm: Lbm, lora: Path, statistics: Path, image: Path
) -> None:
    """At equal bytes the calibrated file is closer in the output; PSNR is that of the two LoRAs' images."""
    size = (f"{round(lora.stat().st_size * 0.35 / 1000)}KB",)
    run_on = {"base_model_path": lbm.base, "images": str(image)}
    weighted = run(dataclasses.replace(config, max_size=size, calibration=statistics, **run_on))
    plain = run(
        dataclasses.replace(config, max_size=size, save_to=config.save_to.with_name("plain.safetensors"), **run_on)
    )
    assert weighted.predicted.of == "output"
    assert weighted.predicted.measured is not None
    assert 0 < weighted.predicted.measured < 1
    assert plain.predicted.of == "weights"
    assert weighted.images is not None
    assert plain.images is not None
    assert weighted.images.worst_psnr > plain.images.worst_psnr + 1
    assert weighted.resize_error > plain.resize_error
    made = settings_of(weighted.adapter)
    assert made["method"] == "calibrated"
    assert made["calibration"] == statistics.name
    assert made["calibration_images"] == " ".join(load_statistics(statistics).image_digests)


@pytest.mark.slow
def test_a_psnr_to_the_images_of_the_lora_as_it_was(config: ResizeConfig, lbm: Lbm, image: Path) -> None:
    asked = dataclasses.replace(config, min_psnr=30.0, base_model_path=lbm.base, images=str(image), rank=32)
    result = run(asked)
    assert result.images is not None
    assert 30 <= result.images.worst_psnr < 34
    assert result.nbytes < result.nbytes_before


def test_statistics_of_another_model_are_refused(config: ResizeConfig, statistics: Path, tmp_path: Path) -> None:
    found = load_statistics(statistics)
    other = tmp_path / "other.safetensors"
    save_statistics(dataclasses.replace(found, origin=dataclasses.replace(found.origin, tuned="another")), other)
    with pytest.raises(CheckpointError) as caught:
        run(dataclasses.replace(config, calibration=other))
    assert str(caught.value) == (
        f"{other} was measured on another model than the one that {config.lora_path} was extracted from. Create it for "
        "that one: lbm-lora calibrate tuned_model_path TUNED ..."
    )
    assert not config.save_to.exists()


def test_a_lora_without_a_tuned_model_gives_a_warning(config: ResizeConfig, statistics: Path, tmp_path: Path) -> None:
    given = load_adapter(config.lora_path)
    trained = dataclasses.replace(given, metadata=dataclasses.replace(given.metadata, tuned_fingerprint=""))
    save_adapter(trained, tmp_path / "trained.safetensors")
    with pytest.warns(LbmLoraWarning, match=r"trained\.safetensors does not say which tuned model it stands for"):
        run(dataclasses.replace(config, lora_path=tmp_path / "trained.safetensors", calibration=statistics, rank=2))


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"min_psnr": 40.0}, ConfigError, "min_psnr needs images: add images."),
        (
            {"max_output_error": 0.1},
            ConfigError,
            "max_output_error needs the denoiser's output: add calibration.",
        ),
        ({"images": "a.png"}, ConfigError, "images needs a base to run LoRAs on: add base_model_path."),
        (
            {"base_model_path": Path("b.safetensors")},
            ConfigError,
            "base_model_path is only for LoRAs that are run: add images or calibration, or leave it out.",
        ),
        ({"max_size": ("1MB",), "rank": 4}, ConfigError, "rank and max_size both choose the ranks. Give one of them."),
        ({"save_to": Path("small.ckpt")}, OutputError, "save_to small.ckpt: a LoRA is a .safetensors file."),
    ],
)
def test_options_that_do_not_go_together(
    config: ResizeConfig, changes: dict[str, Any], error: type[InputError], text: str
) -> None:
    with pytest.raises(error) as caught:
        run(dataclasses.replace(config, **changes))
    assert str(caught.value) == text


def test_outputs_that_are_inputs_and_patterns_without_a_match(config: ResizeConfig) -> None:
    with pytest.raises(OutputError):
        run(dataclasses.replace(config, save_to=config.lora_path))
    with pytest.raises(PatternError, match=r"^pattern 'nowhere' matches none of"):
        run(dataclasses.replace(config, exclude=("nowhere",)))
    with pytest.raises(AdapterError, match=r"^include and exclude leave out all \d+ deltas of .*lora\.safetensors\."):
        run(dataclasses.replace(config, exclude=("*",)))
