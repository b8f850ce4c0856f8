"""`base`: where the backbone comes from, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lbm_lora.errors import CheckpointError, ConfigError, HubError, InputError, OutputError, PairingError
from lbm_lora.model.make_base import ensure_base, planned_missing
from lbm_lora.verbs.base import make_base
from standins import Lbm


def test_the_backbone_of_the_config_is_found_beside_it(lbm: Lbm, tmp_path: Path) -> None:
    config = lbm.tuned.parent / "config.yaml"
    made = make_base(tmp_path / "base.ckpt", config_path=config, test_baseline=True)
    assert made.baseline is not None
    assert made.baseline.can_be_base
    ledger = json.loads((tmp_path / "base_ledger.json").read_text(encoding="utf-8"))["tensors"]
    assert {entry["action"] for entry in ledger} == {"copied", "cropped", "added", "dropped"}
    found, wanted = load_file(tmp_path / "base.safetensors"), load_file(lbm.base)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"test_baseline": True}, ConfigError, r"^test_baseline looks for model\.safetensors next to config_path"),
        ({"backbone_signature": "nobody/no-such-model"}, HubError, "nobody/no-such-model.*backbone_signature"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(error, match=f"(?s){text}"):
        make_base(tmp_path / options.pop("save_path", "base.ckpt"), **options)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_the_tuned_file_is_refused(lbm: Lbm) -> None:
    before = lbm.tuned.read_bytes()
    with pytest.raises(OutputError, match="is an input of this command and would be overwritten"):
        make_base(lbm.tuned, backbone_signature=str(lbm.backbone), tuned_model_path=lbm.tuned)
    assert lbm.tuned.read_bytes() == before


def test_a_missing_base_is_made_and_one_that_is_there_is_left(lbm: Lbm, tmp_path: Path) -> None:
    config = lbm.tuned.parent / "config.yaml"
    path = ensure_base(tmp_path / "new.ckpt", backbone_signature=str(lbm.backbone), config_path=config)
    stamp = path.stat().st_mtime_ns
    assert ensure_base(path, backbone_signature="nobody/no-such-model", config_path=None) == path
    assert path.stat().st_mtime_ns == stamp
    for make in (planned_missing, ensure_base):
        with pytest.raises(CheckpointError, match=r"^The backbone zzz .* is not at zzz, and is not a hub id"):
            make(path, backbone_signature="zzz", config_path=None)


def test_a_wrong_tuned_model_leaves_the_older_base(lbm: Lbm, tmp_path: Path) -> None:
    path, other, cut = (tmp_path / f"{name}.safetensors" for name in ("b", "other", "cut"))
    make_base(path, backbone_signature=str(lbm.backbone))
    before = path.stat().st_mtime_ns
    cut.write_bytes(b"cut")
    save_file({"denoiser.a.weight": torch.zeros(2, 2)}, other)
    for wrong in (cut, tmp_path / "none"):
        with pytest.raises(InputError):
            make_base(path, backbone_signature=str(lbm.backbone), tuned_model_path=wrong)
    with pytest.raises(PairingError) as caught:
        make_base(path, backbone_signature=str(lbm.backbone), tuned_model_path=other)
    assert str(caught.value).startswith(f"{path} and {other} have no tensors")
    assert path.stat().st_mtime_ns == before
