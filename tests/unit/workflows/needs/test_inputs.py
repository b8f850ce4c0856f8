"""What the inputs of a config are, from their headers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from lbm_lora import bundled
from lbm_lora.adapter import Adapter, LoraModule, save_adapter
from lbm_lora.configs.data_check import CheckConfig
from lbm_lora.configs.extract import ExtractConfig
from lbm_lora.configs.fuse import FuseConfig
from lbm_lora.configs.infer import InferConfig
from lbm_lora.configs.inspect import InspectConfig
from lbm_lora.naming import ModuleName
from lbm_lora.workflows.needs.inputs import inputs_of, parameters_of

MODEL = bundled.TUNED / "model.safetensors"


def lora(folder: Path, module: str) -> Path:
    """A native LoRA of one module."""
    name = ModuleName(module)
    factors = LoraModule(name=name, down=torch.ones(2, 16), up=torch.ones(16, 2), alpha=2.0)
    path = folder / "lora.safetensors"
    save_adapter(Adapter(modules={name: factors}, dense={}), path)
    return path


def said(config: object) -> list[tuple[str, str, str, str]]:
    checks = inputs_of(config).checks
    return [(str(one.subject), one.level, str(one.found), str(one.remedy)) for one in checks]


def test_each_input_is_named_with_its_kind_and_size() -> None:
    config = InferConfig(base_model_path=MODEL, source_image=str(bundled.PHOTOS), output_path="out")
    checkpoint, images = said(config)
    assert checkpoint == ("base_model_path", "ok", f"{MODEL}: an LBM checkpoint, 1,925 tensors, bf16, 15.18 MB", "")
    assert images == ("source_image", "ok", f"{bundled.PHOTOS}: 4 images, 63.1 kB; not decoded", "")
    inputs = inputs_of(config)
    assert len(inputs.images["source_image"]) == 4
    assert set(inputs.paths) == {MODEL, *inputs.images["source_image"]}


def test_what_is_missing_is_a_problem_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "base.safetensors").touch()
    config = ExtractConfig(base_model_path=tmp_path / "bas.safetensors", tuned_model_path=MODEL, save_to=Path("x"))
    missing, _ = said(config)
    assert missing[:3] == ("base_model_path", "problem", str(tmp_path / "bas.safetensors"))
    assert f"Did you mean {tmp_path / 'base.safetensors'}?" in missing[3]
    made = replace(config, create_base_model=True)
    assert said(made)[0][1:3] == ("ok", f"{tmp_path / 'bas.safetensors'} does not exist: the base is made there")


def test_a_lora_and_a_model_in_each_others_place_are_problems(tmp_path: Path) -> None:
    path = lora(tmp_path, "conv_in")
    config = FuseConfig(base_model_path=path, lora_path=(MODEL,), save_to=Path("x.safetensors"))
    base, model = said(config)
    assert base[1] == "problem"
    assert "it goes with lora_path" in base[3]
    assert (model[1], "not a LoRA" in model[3]) == ("problem", True)


def test_a_lora_whose_keys_match_nothing_is_a_problem_unless_that_is_allowed(tmp_path: Path) -> None:
    path = lora(tmp_path, "of.another.model")
    config = FuseConfig(base_model_path=MODEL, lora_path=(path,), save_to=Path("x.safetensors"))
    *_, unmatched = said(config)
    assert unmatched[:3] == ("lora_path", "problem", f"1 key of {path} match nothing in {MODEL}")
    assert "of.another.model.weight" in unmatched[3]
    assert {one[1] for one in said(replace(config, allow_unmatched=True))} == {"ok"}


def test_a_name_on_the_hub_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = InspectConfig(files=(Path("user/repo"),))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert said(config)[0][1] == "note"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert said(config)[0][1] == "problem"
    (tmp_path / "models--user--repo").mkdir()
    assert said(config)[0][1] == "ok"


def test_shards_are_expanded_and_those_on_servers_left_there(tmp_path: Path) -> None:
    for name in ("a0.tar", "a1.tar"):
        (tmp_path / name).write_bytes(b"12345")
    config = CheckConfig(data=(f"{tmp_path}/a{{0..1}}.tar", "https://host/b.tar"))
    assert said(config) == [("data", "ok", "2 shards, 0.0 kB, 1 shard to fetch", "")]
    (missing,) = said(CheckConfig(data=(f"{tmp_path}/a{{0..2}}.tar",)))
    assert missing[1] == "problem"
    assert "a2.tar does not exist" in missing[3]


def test_a_folder_and_a_file_have_their_sizes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x" * 2000)
    assert said(CheckConfig(data=(str(tmp_path),))) == [("data", "ok", f"{tmp_path}: folder of 1 file, 2.0 kB", "")]
    (tmp_path / "train.yaml").write_text("mode: lora", encoding="utf-8")
    assert said(CheckConfig(path_config=tmp_path / "train.yaml"))[0][2].endswith("train.yaml: 0.0 kB")


def test_the_largest_checkpoint_counts() -> None:
    inputs = inputs_of(InspectConfig(files=(MODEL,), base_model_path=MODEL))
    parameters, largest = parameters_of(inputs.checkpoints)
    assert 7_000_000 < parameters < 8_000_000
    assert 0 < largest < parameters
    assert parameters_of({}) == (0, 0)
