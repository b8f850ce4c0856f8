"""`make_base`, `layers`, `inspect`, `fuse`, `infer`: values in and out, as the commands have them.

`calibrate`: test_loras.py.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import lbm_lora
from lbm_lora import ConfigError, FuseConfig, InferConfig, LayersConfig, MeasuredAdapter, OutputError
from standins import Lbm

Save = Callable[[str, Mapping[str, Tensor]], Path]
States = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]


@pytest.fixture(scope="module")
def lora(lbm: Lbm) -> MeasuredAdapter:
    return lbm_lora.extract(lbm.base, lbm.tuned, rank=2, device="cpu")


def test_a_base_is_made(lbm: Lbm, tmp_path: Path) -> None:
    config_path = str(lbm.tuned.parent / "config.yaml")
    made = lbm_lora.make_base(tmp_path / "base.ckpt", config_path=config_path, torch_dtype=torch.float32)
    assert made.base.safetensors == tmp_path / "base.safetensors"
    assert {tensor.dtype for tensor in load_file(made.base.safetensors).values()} >= {torch.float32}
    assert made.baseline is None


def test_layers_of_a_state_dict_are_those_of_its_file(lbm: Lbm, states: States) -> None:
    wanted = lbm_lora.run_layers(LayersConfig(model_path=lbm.tuned, patterns=("attn1",), rank=4))
    assert lbm_lora.layers(states[1], "attn1", rank=4) == wanted


def test_a_fused_state_dict_is_the_fused_file(
    lbm: Lbm,
    states: States,
    lora: MeasuredAdapter,
    empty: Path,
    tmp_path: Path,
) -> None:
    before = {key: tensor.clone() for key, tensor in states[0].items()}
    found = lbm_lora.fuse(states[0], lora, lora_scale=0.5)
    assert list(empty.iterdir()) == []
    assert all(torch.equal(states[0][key], before[key]) for key in before)
    config = FuseConfig(
        base_model_path=lbm.base,
        lora_path=(lora.save(tmp_path / "l.safetensors"),),
        lora_scale=(0.5,),
        save_to=tmp_path / "fused.safetensors",
    )
    wanted = load_file(lbm_lora.run_fuse(config).output)
    written = lbm_lora.fuse(lbm.base, [lora], lora_scale=[0.5], save_to=tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "fused.safetensors").read_bytes()
    for tensors in (found, written):
        assert tensors.keys() == wanted.keys()
        assert all(torch.equal(tensors[key], wanted[key]) for key in wanted)


def test_what_fuse_refuses(lbm: Lbm, lora: MeasuredAdapter) -> None:
    with pytest.raises(ConfigError, match="so there is nothing to fuse"):
        lbm_lora.fuse(lbm.base, [])
    with pytest.raises(OutputError, match="would be overwritten"):
        lbm_lora.fuse(lbm.base, lora, save_to=lbm.base)


def test_images_of_pil_are_translated_as_their_files(
    lbm: Lbm,
    states: States,
    lora: MeasuredAdapter,
    images: list[Image.Image],
    tmp_path: Path,
) -> None:
    (tmp_path / "in").mkdir()
    images[0].save(tmp_path / "in" / "image-1.png")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "mask.png")
    config = InferConfig(
        base_model_path=lbm.base,
        lora_path=(lora.save(tmp_path / "l.safetensors"),),
        source_image=str(tmp_path / "in"),
        output_path=str(tmp_path / "files"),
        mask=str(tmp_path / "mask.png"),
        size=64,
        device="cpu",
    )
    lbm_lora.run_infer(config)
    options: dict[str, Any] = {"size": 64, "device": "cpu", "config_path": lbm.base.parent / "config.yaml"}
    result = lbm_lora.infer(
        states[0], [images[0]], tmp_path / "values", lora, mask=mask, tuned=lbm.tuned, compare=True, **options
    )
    (one,) = result.outputs
    assert one.output == tmp_path / "values" / "image-1.png"
    assert one.comparison is not None
    assert one.comparison.exists()
    found, wanted = (np.asarray(Image.open(tmp_path / name / "image-1.png")) for name in ("values", "files"))
    assert np.array_equal(found, wanted)
    assert np.array_equal(found[:, 32:], np.asarray(images[0])[:, 32:])
    assert result.adapters[0].path == Path("LoRA 1")
    both = [mask, Image.new("L", (64, 64), 255)]
    made = lbm_lora.infer(states[0], [images[0]] * 2, tmp_path / "two", lora, mask=both, **options).outputs
    first, second = (np.asarray(Image.open(each.output)) for each in made)
    assert np.array_equal(first, found)
    assert not np.array_equal(second, found), "each has its own mask"
    held = {path: path.read_bytes() for path in (one.output, tmp_path / "mask.png")}
    for path in held:
        refused = pytest.raises(OutputError, match="is an input of this command and would be overwritten")
        with Image.open(one.output) as source, Image.open(tmp_path / "mask.png") as opened, refused:
            lbm_lora.infer(states[0], source, path, mask=opened, overwrite=True, **options)
    assert {path: path.read_bytes() for path in held} == held
