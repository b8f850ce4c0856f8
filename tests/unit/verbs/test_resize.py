"""`resize`: a LoRA at other ranks, with and without statistics and a network."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lbm_lora.adapter import load_adapter
from lbm_lora.calibration import load_statistics
from lbm_lora.errors import AdapterError, CheckpointError, ConfigError, OutputError, PatternError
from lbm_lora.progress import LbmLoraWarning
from lbm_lora.verbs.calibrate import calibrate
from lbm_lora.verbs.extract import extract
from lbm_lora.verbs.resize import resize, resize_several
from standins import Lbm

ENDS = ("mid_block", "re:^conv_", "re:^time_")


@pytest.fixture(scope="module")
def lora(lbm: Lbm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    extract(lbm.base, lbm.tuned, save_to=path, rank=8, include=ENDS)
    return path


@pytest.fixture(scope="module")
def images(write_images: Callable[[int], Path]) -> Path:
    return write_images(1)


@pytest.fixture(scope="module")
def statistics(lbm: Lbm, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("statistics") / "statistics.safetensors"
    calibrate(lbm.tuned, images, save_to=path, size=64, probes=1, torch_dtype="float")
    return path


def test_a_lora_gets_other_ranks_and_keeps_its_precision_and_origin(lora: Path, tmp_path: Path) -> None:
    before, path = load_adapter(lora), tmp_path / "small.safetensors"
    written, found = resize(lora, rank=3, save_to=path), resize(before, rank=3)
    assert written.path == path
    after = load_adapter(path)
    assert {module.up.dtype for module in after.modules.values()} == {torch.bfloat16}
    assert max(module.rank for module in after.modules.values()) == 3
    assert after.metadata.base_fingerprint == before.metadata.base_fingerprint
    assert after.metadata.tuned_fingerprint == before.metadata.tuned_fingerprint
    assert json.loads(after.metadata.facts["lbm_lora_settings"])["resized_from"] == lora.name
    assert 0 < written.resize_error == found.resize_error < 1
    assert after.params == found.params == before.params
    assert all(torch.equal(module.up, after.modules[name].up) for name, module in found.modules.items())


def test_several_sizes_give_several_files(lora: Path, tmp_path: Path) -> None:
    sizes = [f"{round(lora.stat().st_size * share / 1000)}KB" for share in (0.4, 0.3)]
    made = resize_several(lora, max_size=sizes, save_to=tmp_path / "small.safetensors")
    for one, size in zip(made, sizes, strict=True):
        path = tmp_path / f"small_{size}.safetensors"
        assert one.path == path
        assert 0.95 <= path.stat().st_size / (1000 * int(size.removesuffix("KB"))) <= 1
    assert made[0].resize_error < made[1].resize_error
    with pytest.raises(ConfigError, match=r"^max_size asks for 2 LoRAs, resize gives one\. Call resize_several\.$"):
        resize(lora, max_size=sizes)


def test_a_larger_rank_keeps_every_layer_and_says_so(lora: Path) -> None:
    before, after = load_adapter(lora), resize(lora, rank=64)
    count = len(before.modules)
    assert after.notes == (f"{count} layers of {count} had no more ranks than requested and are kept as they are.",)
    assert after.resize_error == 0
    assert all(torch.equal(module.up, after.modules[name].up) for name, module in before.modules.items())


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        ({"exclude": "re:bias$"}, lambda name: name.endswith(".bias")),
        ({"include": "attn1"}, lambda name: "attn1" not in name),
        ({"dense": False}, lambda name: name.endswith(".bias") or "norm" in name),
    ],
)
def test_patterns_leave_out_what_is_listed(lora: Path, changes: Any, gone: Callable[[str], bool]) -> None:
    params = load_adapter(lora).params
    result = resize(lora, rank=64, **changes)
    assert sorted(result.left_out) == sorted(filter(gone, params))
    assert set(result.params) == {name for name in params if not gone(name)}


def test_statistics_weigh_errors_and_a_base_measures_them(lbm: Lbm, lora: Path, statistics: Path, images: Path) -> None:
    """At equal bytes the calibrated file is closer in the output; PSNR is that of the two LoRAs' images."""
    options: Any = {
        "max_size": f"{round(lora.stat().st_size * 0.35 / 1000)}KB", "base": lbm.base, "images": images,
    }  # fmt: skip
    weighted, plain = resize(lora, calibration=statistics, **options), resize(lora, **options)
    assert (weighted.predicted.of, plain.predicted.of) == ("output", "weights")
    assert weighted.predicted.measured is not None
    assert 0 < weighted.predicted.measured < 1
    assert weighted.trial is not None
    assert plain.trial is not None
    assert weighted.trial.worst_psnr > plain.trial.worst_psnr
    assert weighted.resize_error > plain.resize_error


@pytest.mark.slow
def test_a_psnr_to_the_images_of_the_lora_as_it_was(lbm: Lbm, lora: Path, images: Path) -> None:
    result = resize(lora, min_psnr=30.0, base=lbm.base, images=images)
    assert result.trial is not None
    assert 30 <= result.trial.worst_psnr < 34


def test_statistics_must_be_of_its_tuned_model(lora: Path, statistics: Path) -> None:
    known, given = load_statistics(statistics), load_adapter(lora)
    other = dataclasses.replace(known, origin=dataclasses.replace(known.origin, tuned="another"))
    with pytest.raises(CheckpointError, match=f"measured on another model than the one that {lora} was extracted"):
        resize(lora, calibration=other, rank=2)
    trained = dataclasses.replace(given, metadata=dataclasses.replace(given.metadata, tuned_fingerprint=""))
    with pytest.warns(LbmLoraWarning, match="does not say which tuned model it stands for"):
        resize(trained, calibration=statistics, rank=2)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"min_psnr": 40.0}, ConfigError, "^min_psnr needs images: add images"),
        ({"max_output_error": 0.1}, ConfigError, "^max_output_error needs the denoiser's output: add calibration"),
        ({"images": "a.png"}, ConfigError, "^images needs a base to run LoRAs on: add base"),
        (
            {"base": Path("b.safetensors")},
            ConfigError,
            "^base has no effect unless LoRAs are run. Add images or calibr",
        ),
        ({"max_size": "1MB", "rank": 4}, ConfigError, "^rank and max_size both choose the ranks"),
        ({"save_to": Path("small.ckpt")}, OutputError, r"a LoRA is a \.safetensors file\.$"),
        ({"exclude": "nowhere"}, PatternError, r"^pattern 'nowhere' matches none of"),
        ({"exclude": "*"}, AdapterError, r"^include and exclude leave out all \d+ deltas of .*lora\.safetensors\."),
    ],
)
def test_options_that_do_not_go_together(
    lora: Path, changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        resize(lora, **changes)
    with pytest.raises(OutputError, match="would be overwritten"):
        resize(lora, save_to=lora)
