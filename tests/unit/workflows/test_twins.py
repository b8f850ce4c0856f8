"""Twins of a LoRA in other formats: what they hold, and that they stop neither a run nor overwrite an input."""

import dataclasses
import errno
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from lbm_lora.adapter import Adapter, LoraModule, load_adapter, save_adapter
from lbm_lora.adapter.adapter_file import files_of
from lbm_lora.adapter.formats import WISHES
from lbm_lora.adapter.formats.names import SGM, is_norm
from lbm_lora.adapter.metadata import STEP_KEY
from lbm_lora.atomic import atomic_path
from lbm_lora.configs.extract import ExtractConfig
from lbm_lora.configs.train import TrainRunConfig
from lbm_lora.configs.values import ForeignFormat
from lbm_lora.errors import ConfigError, OutputError
from lbm_lora.file_plan import FilePlan
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.ownership import is_lora, is_saved_by_run
from lbm_lora.progress import LbmLoraWarning
from lbm_lora.workflows import extract, train
from lbm_lora.workflows.files_beside import twin_path
from lbm_lora.adapter.twins import plan_twins, write_twins
from standins import Lbm

FORMATS: tuple[ForeignFormat, ...] = get_args(ForeignFormat)
HELD = {"comfyui": (1, 2), "lycoris": (0, 2), "diffusers": (1, 0), "peft": (1, 0)}
"""Format -> biases and norm parameters that a twin keeps."""


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """One module with its bias, and a norm."""
    name = ModuleName("conv_in")
    norm = {ParamName(f"mid_block.resnets.0.norm1.{leaf}"): torch.ones(8) for leaf in ("weight", "bias")}
    module = LoraModule(name, torch.ones(2, 4, 3, 3), torch.ones(8, 2, 1, 1), 3.0)
    adapter = Adapter({name: module}, {ParamName("conv_in.bias"): torch.ones(8), **norm}, prefix="denoiser.")
    assert set(adapter.modules) <= set(SGM)
    return adapter.save(tmp_path / "x.safetensors")


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.filterwarnings("ignore::lbm_lora.progress.LbmLoraWarning")
def test_a_twin_holds_what_its_format_can(lora: Path, to: ForeignFormat) -> None:
    (twin,) = write_twins(lora, [to])
    assert twin.path == twin_path(lora, to)
    assert twin.nbytes == sum(path.stat().st_size for path in twin.files)
    found, given = load_adapter(twin.path), load_adapter(lora)
    norms = sum(map(is_norm, found.dense))
    assert (len(found.dense) - norms, norms) == HELD.get(to, (0, 0))
    assert set(found.dense) | set(twin.dropped) == set(given.dense)
    for name in found.params:
        one, other = found.delta(name), given.delta(name)
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_what_a_twin_leaves_out_is_one_warning_that_counts(lora: Path) -> None:
    with pytest.warns(LbmLoraWarning) as warned:
        write_twins(lora, ["kohya"])
    path = lora.with_name("x.kohya.safetensors")
    assert [str(one.message) for one in warned] == [
        f"{path} leaves out 1 bias and 2 norm parameters, which the format kohya cannot hold as changes."
    ]


def test_a_twin_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    name = ModuleName("not.of.a.unet")
    module = LoraModule(name, torch.ones(2, 4), torch.ones(8, 2), 3.0)
    path = Adapter({name: module}, {}).save(tmp_path / "x.safetensors")
    with pytest.warns(LbmLoraWarning, match=r"x\.kohya\.safetensors was not written: .*not\.of\.a\.unet"):
        assert write_twins(path, ["kohya"]) == ()


def test_an_older_twin_of_a_format_that_cannot_hold_the_new_lora_is_named(lora: Path) -> None:
    module = LoraModule(ModuleName("not.of.a.unet"), torch.ones(2, 4), torch.ones(8, 2), 3.0)
    older = shutil.copy(lora, twin_path(lora, "kohya"))
    path = Adapter({module.name: module}, {}).save(lora)
    with pytest.warns(LbmLoraWarning) as warned:
        write_twins(path, ["kohya"])
    assert str(warned[-1].message) == f"{older} belongs to an earlier x.safetensors. Remove it."


def test_every_format_says_what_becomes_of_biases_and_norms() -> None:
    assert tuple(WISHES) == FORMATS


def test_the_files_of_twins_are_outputs(lora: Path) -> None:
    plan = FilePlan()
    plan_twins(plan, [lora], ["comfyui", "peft", "comfyui"])
    assert [(output.path.relative_to(lora.parent).as_posix(), output.what) for output in plan.outputs] == [
        ("x.comfyui.safetensors", "the comfyui twin"),
        ("x.peft/adapter_model.safetensors", "the peft twin"),
        ("x.peft/adapter_config.json", "the peft twin"),
    ]
    lora.with_name("x.peft").write_bytes(b"")
    with pytest.raises(OutputError, match="an adapter of PEFT is a folder"):
        plan_twins(FilePlan(), [lora], ["peft"])


def test_the_config_of_a_twin_is_ours_as_it_was_written(lora: Path) -> None:
    """PEFT refuses keys that it does not know, so the config has no mark: the weights next to it have its digest."""
    config = lora.with_name("x.peft") / "adapter_config.json"
    config.parent.mkdir()
    config.write_text("{}")
    plan = FilePlan()
    plan_twins(plan, [lora], ["peft"])
    with pytest.raises(OutputError, match=r"adapter_config\.json exists, and lbm-lora did not write it"):
        plan.check()
    with pytest.warns(LbmLoraWarning, match="leaves out 2 norm parameters"):
        write_twins(lora, ["peft"])
    plan.check()
    config.write_text(config.read_text().replace('"r": 2', '"r":  2'))
    with pytest.raises(OutputError, match=r"adapter_config\.json exists, and lbm-lora did not write it"):
        plan.check()
    config.write_bytes(b"")
    with pytest.raises(OutputError, match=r"adapter_config\.json exists, and lbm-lora did not write it"):
        plan.check()


def test_extract_writes_a_twin_of_each_lora(lbm: Lbm, tmp_path: Path) -> None:
    config = ExtractConfig(
        base_model_path=lbm.base,
        tuned_model_path=lbm.tuned,
        save_to=tmp_path / "l.safetensors",
        ranks=(1, 2),
        include=("conv_in",),
        also=("comfyui", "comfyui"),
    )
    result = extract.run(config)
    for one in (result, *result.further):
        (twin,) = one.twins
        assert twin.path == one.adapter.with_name(f"{one.adapter.stem}.comfyui.safetensors")
        assert set(load_adapter(twin.path).params) == set(load_adapter(one.adapter).params)
    with pytest.raises(OutputError, match="is an input of this command"):
        extract.run(dataclasses.replace(config, base_model_path=result.twins[0].path))


def test_a_full_fine_tune_has_no_twins(lbm: Lbm, tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(f"{{mode: full, base_model_path: {lbm.base}, train_folder: {tmp_path}, max_steps: 1}}")
    with pytest.raises(ConfigError, match="also is for LoRAs, but mode full trains a checkpoint"):
        train.run(TrainRunConfig(path_config=path, also=("comfyui",)))


@pytest.mark.filterwarnings("ignore::lbm_lora.progress.LbmLoraWarning")
@pytest.mark.parametrize("to", get_args(ForeignFormat))
def test_a_twin_of_what_a_training_run_has_saved_counts_as_saved_by_it(
    lora: Path, tmp_path: Path, to: ForeignFormat
) -> None:
    adapter, saved = load_adapter(lora), tmp_path / "last.safetensors"
    save_adapter(replace(adapter, metadata=replace(adapter.metadata, facts={STEP_KEY: "100 0123"})), saved)
    for path in (lora, saved):
        write_twins(path, (to,))
        weights = files_of(twin_path(path, to), to)[0]
        plan, own = FilePlan(), FilePlan()
        plan_twins(plan, [path], (to,))
        plan_twins(own, [path], (to,), ours=is_lora)
        own.check()
        if path == saved:
            with pytest.raises(OutputError, match="exists, and a training run has saved it"):
                plan.check()
            assert is_saved_by_run(weights)
        else:
            plan.check()


@pytest.mark.parametrize(("changes", "count"), [({}, 2), ({"stopped_by": "SIGTERM"}, 0), ({"process": 1}, 0)])
def test_the_last_and_the_best_lora_of_a_complete_training_have_twins(
    lbm: Lbm, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], count: int
) -> None:
    best = shutil.copy(lora, tmp_path / "best.safetensors")
    facts: dict[str, Any] = {"step": 1, "total": 1, "learning": 1, "loss": 0.0, "scores": None, "best_step": 1}
    facts |= {"folder": tmp_path, "last": lora, "best": best, "stopped_by": "", "seconds": 1.0, "process": 0} | changes
    monkeypatch.setattr(train, "trained", lambda settings, progress, **options: train.TrainResult(**facts))
    path = tmp_path / "t.yaml"
    path.write_text(f"{{lora_rank: 2, base_model_path: {lbm.base}, train_folder: {tmp_path}, max_steps: 1}}")
    result = train.run(TrainRunConfig(path_config=path, also=("comfyui",)))
    assert [twin.path.name for twin in result.twins] == ["x.comfyui.safetensors", "best.comfyui.safetensors"][:count]


def test_a_training_that_is_stopped_names_older_twins(
    lbm: Lbm, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(lora, twin_path(lora, "diffusers"))
    facts: dict[str, Any] = {"step": 1, "total": 9, "learning": 1, "loss": 0.0, "scores": None, "best_step": None}
    facts |= {"folder": tmp_path, "last": lora, "best": None, "stopped_by": "SIGTERM", "seconds": 1.0, "process": 0}
    monkeypatch.setattr(train, "trained", lambda settings, progress, **options: train.TrainResult(**facts))
    path = tmp_path / "t.yaml"
    path.write_text(f"{{lora_rank: 2, base_model_path: {lbm.base}, train_folder: {tmp_path}, max_steps: 9}}")
    with pytest.warns(LbmLoraWarning, match=r"x\.diffusers\.safetensors belongs to an earlier x\.safetensors"):
        train.run(TrainRunConfig(path_config=path, also=("diffusers",)))


@pytest.mark.filterwarnings("ignore::lbm_lora.progress.LbmLoraWarning")
def test_a_full_disk_leaves_the_lora_its_sidecar_and_its_twins_of_before(
    lbm: Lbm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(path: Path, _: str) -> None:
        with atomic_path(path):
            raise OSError(errno.ENOSPC, "No space left on device")

    config = ExtractConfig(
        base_model_path=lbm.base,
        tuned_model_path=lbm.tuned,
        save_to=tmp_path / "l.safetensors",
        rank=2,
        also=("peft", "comfyui"),
    )
    extract.run(config)
    before = contents()
    assert len(before) == 5
    monkeypatch.setattr("lbm_lora.adapter.adapter_file.write_text", full)
    with pytest.raises(OutputError, match=r"No space left on device\. Choose another output path\."):
        extract.run(dataclasses.replace(config, rank=1))
    assert contents() == before  # the native LoRA too, which was complete
    monkeypatch.undo()
    extract.run(dataclasses.replace(config, rank=1))
    assert contents().keys() == before.keys()
    assert all(contents()[path] != before[path] for path in before)
