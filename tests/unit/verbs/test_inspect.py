"""`inspect`: whole files, their short forms, and the page that it writes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from lbm_lora.cli.main import main
from lbm_lora.errors import CheckpointError, ConfigError
from lbm_lora.verbs.extract import extract
from lbm_lora.verbs.inspect import inspect
from standins import LBM_YAML

SHAPES = {
    "conv_in.weight": (8, 4, 3, 3),
    "conv_in.bias": (8,),
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight": (12, 16),
    "mid_block.attentions.0.transformer_blocks.0.norm1.weight": (16,),
    "up_blocks.0.resnets.0.conv1.weight": (8, 6, 3, 3),
}


@dataclass(frozen=True)
class Pair:
    """A base and a tuned checkpoint of a few layers of an LBM."""

    base: Path
    tuned: Path


def state(seed: int) -> Mapping[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {f"denoiser.{name}": torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return tensors | {"vae.vae_model.encoder.conv_in.weight": torch.ones(4, 3), "num_iterations": torch.tensor(0.0)}


@pytest.fixture(scope="module")
def lbm(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Read only. The tuned checkpoint has its config.yaml next to it, the base has none."""
    folder = tmp_path_factory.mktemp("lbm")
    (folder / "tuned").mkdir()
    pair = Pair(folder / "base.safetensors", folder / "tuned" / "model.safetensors")
    save_file(dict(state(0)), pair.base)
    save_file(dict(state(1)), pair.tuned)
    (folder / "tuned" / "config.yaml").write_text(yaml.safe_dump(LBM_YAML), encoding="utf-8")
    return pair


@pytest.fixture(scope="module")
def lora(lbm: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inspect") / "lora.safetensors"
    extract(base=lbm.base, tuned=lbm.tuned, save_to=path, rank=4)
    return path


def test_a_lora_is_known_by_the_files_at_hand(lbm: Pair, lora: Path) -> None:
    found = inspect(lora, lbm.tuned, base=lbm.base)
    adapter = found.file.adapter
    assert adapter is not None
    assert adapter.base.known_as == lbm.base.name
    assert adapter.tuned.known_as == lbm.tuned.name
    assert found.fit is not None
    assert found.fit.base == "tuned"


def test_a_lora_fits_its_base(lbm: Pair, lora: Path) -> None:
    found = inspect(lora, base=lbm.base)
    assert found.fit is not None
    assert found.fit.fits
    assert repr(found).startswith("<Inspection lora.safetensors: a LoRA, native, ")
    assert repr(found).endswith("; the LoRA fits the checkpoint>")


def test_every_delta_and_byte_is_accounted_for(lora: Path) -> None:
    file = inspect(lora).file
    adapter = file.adapter
    assert adapter is not None
    assert sum(block.tensors for block in adapter.blocks) == len(adapter.deltas)
    assert sum(block.nbytes for block in adapter.blocks) == adapter.factor_nbytes + adapter.dense_nbytes
    alphas = 4 * adapter.modules
    assert adapter.factor_nbytes + adapter.dense_nbytes + alphas + file.header_nbytes == lora.stat().st_size
    assert sum(block.share for block in adapter.blocks) == pytest.approx(1)


@pytest.mark.parametrize("form", ["file", "folder", "ckpt", "index"])
def test_a_checkpoint_in_any_container_is_the_same(form: str, lbm: Pair, tmp_path: Path) -> None:
    source = lbm.tuned
    tensors = load_file(source)
    path = tmp_path / "model.safetensors"
    if form == "ckpt":
        path = tmp_path / "model.ckpt"
        torch.save({"model_state_dict": tensors}, path)
    elif form == "index":
        path = tmp_path / "model.safetensors.index.json"
        keys = list(tensors)
        for number, part in enumerate((keys[: len(keys) // 2], keys[len(keys) // 2 :])):
            save_file({key: tensors[key] for key in part}, tmp_path / f"{number}.safetensors")
        weight_map = {key: f"{int(place >= len(keys) // 2)}.safetensors" for place, key in enumerate(keys)}
        path.write_text(json.dumps({"weight_map": weight_map}))
    else:
        save_file(tensors, path)
    found = inspect(path if form != "folder" else tmp_path, source)
    assert found.file.kind == "an LBM checkpoint"
    assert len(found.file.files) == (2 if form == "index" else 1)
    assert found.difference is not None
    assert found.difference.is_same
    assert found.file.checkpoint is not None
    assert found.other is not None
    assert found.other.checkpoint is not None
    assert found.file.checkpoint.fingerprint == found.other.checkpoint.fingerprint


def test_base_and_tuned_differ_by_the_fine_tune(lbm: Pair) -> None:
    found = inspect(lbm.base, lbm.tuned)
    assert found.difference is not None
    assert found.difference.counts == {"different": len(SHAPES), "same": 2}
    vae = next(block for block in found.difference.blocks if block.block == "vae")
    assert vae.tensors == vae.same


def test_the_config_is_found_where_other_commands_find_it(lbm: Pair) -> None:
    alone, beside = (inspect(path).file.checkpoint for path in (lbm.base, lbm.tuned))
    assert alone is not None
    assert beside is not None
    assert (alone.config, beside.config) == ("not in the file or next to it", "config.yaml next to it")


def test_a_lora_that_cannot_be_read_is_named_and_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"unet:0:up": torch.ones(2)}, path)
    assert main(["inspect", str(path), "--json"]) == 0
    assert "cloneofsimo" in json.loads(capsys.readouterr().out)["file"]["refusal"]


def test_state_dicts_are_inspected_as_their_files_are(lbm: Pair, tmp_path: Path) -> None:
    found = inspect(load_file(lbm.base), load_file(lbm.tuned), report=tmp_path / "r")
    wanted = inspect(lbm.base, lbm.tuned)
    assert found.difference is not None
    assert wanted.difference is not None
    assert set(found.difference.rows) == set(wanted.difference.rows)
    assert repr(found).startswith("<Inspection state dict: an LBM checkpoint, ")
    assert found.written == (tmp_path / "r" / "inspect.html",)
    assert found.written[0].is_file()


def test_three_files_are_refused(lora: Path) -> None:
    with pytest.raises(ConfigError, match=r"^inspect takes one file or two, got 3\.$"):
        inspect([lora, lora, lora])


def test_a_truncated_file_is_refused(lora: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(lora.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        inspect(tmp_path / "cut.safetensors")


def test_a_lora_as_the_base_is_refused(lora: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        inspect(lora, base=lora)
