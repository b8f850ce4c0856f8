"""The workflow `base`: where the backbone comes from, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.configs.base import BaseConfig
from lbm_lora.errors import CheckpointError, ConfigError, HubError, InputError, OutputError, PairingError
from lbm_lora.workflows.base import ensure_base, planned_missing, run
from standins import Lbm


def test_the_backbone_of_the_config_is_found_beside_it(lbm: Lbm, tmp_path: Path) -> None:
    outcome = run(BaseConfig(config_path=lbm.tuned.parent / "config.yaml", save_path=tmp_path / "base.ckpt"))
    assert outcome.baseline is None
    ledger = json.loads(outcome.ledger_file.read_text(encoding="utf-8"))["tensors"]
    assert outcome.ledger_file == tmp_path / "base_ledger.json"
    assert len(ledger) == len(outcome.base.ledger)
    assert {entry["action"] for entry in ledger} == {"copied", "cropped", "added", "dropped"}
    with open_checkpoint(tmp_path / "base.safetensors") as made, open_checkpoint(lbm.base) as expected:
        assert all((made.read(key) == expected.read(key)).all() for key in expected.specs)


def test_test_baseline_takes_the_tuned_model_beside_the_config(lbm: Lbm, tmp_path: Path) -> None:
    config = lbm.tuned.parent / "config.yaml"
    outcome = run(BaseConfig(config_path=config, save_path=tmp_path / "base.ckpt", test_baseline=True))
    assert outcome.baseline is not None
    assert outcome.baseline.can_be_base


def test_test_baseline_without_a_config_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^test_baseline looks for model\.safetensors next to config_path"):
        run(BaseConfig(save_path=tmp_path / "base.ckpt", test_baseline=True))


def test_an_output_that_is_the_tuned_file_is_refused(lbm: Lbm, tmp_path: Path) -> None:
    before = lbm.tuned.read_bytes()
    config = BaseConfig(backbone_signature=str(lbm.backbone), save_path=lbm.tuned, tuned_model_path=lbm.tuned)
    with pytest.raises(OutputError, match="is an input of this command and would be overwritten"):
        run(config)
    assert lbm.tuned.read_bytes() == before


def test_an_unreachable_hub_names_the_local_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError) as error_info:
        run(BaseConfig(backbone_signature="nobody/no-such-model", save_path=tmp_path / "base.ckpt"))
    assert "nobody/no-such-model" in str(error_info.value)
    assert "backbone_signature" in str(error_info.value)
    assert list(tmp_path.iterdir()) == []


def test_ensure_base_makes_a_missing_base_and_leaves_one_that_is_there(lbm: Lbm, tmp_path: Path) -> None:
    config = lbm.tuned.parent / "config.yaml"
    path = ensure_base(tmp_path / "new.ckpt", backbone_signature=str(lbm.backbone), config_path=config)
    stamp = path.stat().st_mtime_ns
    again = ensure_base(path, backbone_signature="nobody/no-such-model", config_path=None)
    assert again == path
    assert path.stat().st_mtime_ns == stamp
    for make in (planned_missing, ensure_base):
        with pytest.raises(CheckpointError, match=r"^The backbone zzz .* is not at zzz, and is not a hub id"):
            make(path, backbone_signature="zzz", config_path=None)


def test_a_tuned_model_of_another_kind_is_told_apart_from_the_base_by_its_path(lbm: Lbm, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"denoiser.a.weight": torch.zeros(2, 2)}, other)
    path = tmp_path / "b.safetensors"
    with pytest.raises(PairingError) as caught:
        run(BaseConfig(save_path=path, backbone_signature=str(lbm.backbone), tuned_model_path=other))
    assert str(caught.value).startswith(f"{path} and {other} have no tensors")


@pytest.mark.parametrize("content", [None, b"cut"])
def test_a_wrong_tuned_model_leaves_the_older_base(lbm: Lbm, tmp_path: Path, content: bytes | None) -> None:
    config = BaseConfig(save_path=tmp_path / "b.safetensors", backbone_signature=str(lbm.backbone))
    made = run(config).base.safetensors
    before = made.stat().st_mtime_ns
    wrong = tmp_path / "wrong.safetensors"
    if content is not None:
        wrong.write_bytes(content)
    with pytest.raises(InputError):
        run(replace(config, tuned_model_path=wrong))
    assert made.stat().st_mtime_ns == before
