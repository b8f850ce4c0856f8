"""Predicted sizes of outputs, compared with those of real files."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lbm_lora import bundled
from lbm_lora.calibration import PartialFile, collect
from lbm_lora.configs.base import BaseConfig
from lbm_lora.configs.calibrate import CalibrateConfig
from lbm_lora.configs.data_pack import PackConfig
from lbm_lora.configs.extract import ExtractConfig
from lbm_lora.configs.infer import InferConfig
from lbm_lora.configs.validate import ValidateConfig
from lbm_lora.errors import PairingError
from lbm_lora.workflows import calibrate, extract
from lbm_lora.workflows.needs.inputs import Inputs, inputs_of
from lbm_lora.workflows.needs.outputs import Output, outputs_of
from standins import Lbm

MODEL = bundled.TUNED / "model.safetensors"
UNET = bundled.BACKBONE / "unet" / "diffusion_pytorch_model.safetensors"


def planned(command: str, config: object) -> list[Output]:
    return outputs_of(command, config, inputs_of(config))


def test_the_size_of_a_lora_is_that_of_the_file_that_is_written(tmp_path: Path) -> None:
    base, tuned = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    shapes = {"conv_in.weight": (64, 4, 3, 3), "proj.weight": (512, 256), "proj.bias": (512,)}
    save_file({f"denoiser.{name}": torch.zeros(shape) for name, shape in shapes.items()}, base)
    save_file({f"denoiser.{name}": torch.rand(shape) for name, shape in shapes.items()}, tuned)
    config = ExtractConfig(base_model_path=base, tuned_model_path=tuned, save_to=tmp_path / "lora.safetensors", rank=64)
    adapter, sidecar = planned("extract", config)
    extract.run(config)
    assert adapter.nbytes == pytest.approx(adapter.path.stat().st_size, rel=0.05)
    assert sidecar.path.is_file()


def test_several_loras_have_the_names_and_sizes_that_were_requested(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    config = ExtractConfig(base_model_path=MODEL, tuned_model_path=MODEL, save_to=path, max_size=("2MB", "900KB"))
    sized = [(one.path.name, one.nbytes) for one in planned("extract", replace(config, also=("peft",)))]
    assert sized[0] == ("lora_2MB.safetensors", 2_000_000)
    assert sized[2:4] == [("lora_2MB.peft", 2_000_000), ("lora_900KB.safetensors", 900_000)]
    assert planned("extract", replace(config, max_size=(), max_error=0.3))[0].nbytes is None


@pytest.mark.slow
def test_unfinished_sums_are_at_most_as_large_as_predicted(lbm: Lbm, tmp_path: Path) -> None:
    config = CalibrateConfig(
        tuned_model_path=lbm.tuned, images=str(bundled.PHOTOS), save_to=tmp_path / "s.safetensors", count=1, size=64
    )
    _, sums = planned("calibrate", config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartialFile, "remove", lambda _: None)
        patch.setattr(calibrate, "collect", partial(collect, save_every=0))
        calibrate.run(config)
    assert sums.nbytes is not None
    assert sums.path.stat().st_size < sums.nbytes < 2 * sums.path.stat().st_size


def test_checkpoints_that_do_not_pair_are_refused(tmp_path: Path) -> None:
    config = ExtractConfig(base_model_path=UNET, tuned_model_path=MODEL, save_to=tmp_path / "lora.safetensors")
    with pytest.raises(PairingError):
        planned("extract", config)


def test_a_base_has_two_twins_of_full_size_or_of_the_tuned_checkpoints_and_a_ledger() -> None:
    config = BaseConfig(save_path=Path("base.ckpt"))
    *twins, ledger = planned("base", config)
    assert [one.nbytes for one in twins] == [5_020_000_000] * 2
    assert ledger.path == Path("base_ledger.json")
    tuned = planned("base", replace(config, tuned_model_path=MODEL))
    assert tuned[0].nbytes == pytest.approx(MODEL.stat().st_size, rel=0.03)


def test_statistics_grow_with_the_widths_up_to_which_moments_are_dense() -> None:
    config = CalibrateConfig(tuned_model_path=MODEL, images=str(bundled.PHOTOS), save_to=Path("s.safetensors"))
    (dense, sums), (narrow, _) = (
        planned("calibrate", config),
        planned("calibrate", replace(config, dense_up_to=0, sketch_rank=0, conv_dense_up_to=0)),
    )
    assert dense.nbytes is not None
    assert narrow.nbytes is not None
    measured = 39_867_804
    assert measured < dense.nbytes < 1.5 * measured
    assert narrow.nbytes * 5 < dense.nbytes
    assert (sums.path, sums.is_temporary) == (Path("s.partial.safetensors"), True)


def test_images_are_planned_one_by_one(tmp_path: Path) -> None:
    config = InferConfig(base_model_path=MODEL, source_image=str(bundled.PHOTOS), output_path=str(tmp_path / "out"))
    outputs = planned("infer", config)
    assert [one.path.parent.name for one in outputs] == ["out"] * 4
    assert all(one.nbytes and one.nbytes % 3 == 0 for one in outputs)


def test_somebody_elses_file_in_place_of_the_copy_of_a_source_is_kept_and_not_named(tmp_path: Path) -> None:
    config = InferConfig(
        base_model_path=MODEL,
        source_image=str(bundled.PHOTOS / "coffee.jpg"),
        output_path=str(tmp_path / "o.png"),
        save_input=True,
    )
    assert [one.path.name for one in planned("infer", config)] == ["o.png", "o_input.png"]
    (tmp_path / "o_input.png").write_bytes(b"somebody's")
    assert [one.path.name for one in planned("infer", config)] == ["o.png"]


def test_folders_are_outputs_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x" * 10)
    assert planned("data_pack", PackConfig(folder=tmp_path, to=Path("shards"))) == [
        Output(path=Path("shards"), nbytes=10, is_folder=True)
    ]
    validate = ValidateConfig(base_model_path=MODEL, tuned_model_path=MODEL, lora_path=MODEL)
    report, layers = planned("validate", replace(validate, report=Path("r"), layer_names=Path("names.txt")))
    assert (report.path, report.is_folder, layers.path) == (Path("r"), True, Path("names.txt"))
    assert planned("validate", validate)[0].path == MODEL.with_name("model_report")


def test_a_command_that_writes_nothing_has_no_outputs() -> None:
    assert outputs_of("layers", None, Inputs()) == []
