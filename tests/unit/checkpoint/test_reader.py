"""Checkpoints of any container, by the names of their tensors."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lbm_lora.checkpoint import (
    NATIVE,
    FileKind,
    Fingerprint,
    FingerprintBuilder,
    differing,
    fingerprint,
    kind_of,
    open_checkpoint,
)
from lbm_lora.checkpoint.reader import normalized, normalized_keys
from lbm_lora.errors import CheckpointError
from lbm_lora.naming import ParamName

Save = Callable[[str, Mapping[str, Tensor]], Path]


def shards(save: Save, name: str, **files: Mapping[str, Tensor]) -> Path:
    """An index and its shards; the path of the index."""
    paths = {shard: save(f"{name}-{shard}.safetensors", tensors) for shard, tensors in files.items()}
    weight_map = {key: paths[shard].name for shard, tensors in files.items() for key in tensors}
    index = paths["one"].with_name(f"{name}.safetensors.index.json")
    index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return index


def error_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    return str(caught.value)


def test_shards_are_one_checkpoint(save: Save) -> None:
    index = shards(save, "m", one={"a": torch.zeros(2)}, two={"b": torch.ones(2)})
    for path in (index, index.parent):
        with open_checkpoint(path) as found:
            assert list(found.specs) == ["a", "b"]
            assert torch.equal(found.read("b"), torch.ones(2))
            assert [file.name for file in found.files] == ["m-one.safetensors", "m-two.safetensors"]
            assert found.path == path


def test_a_key_in_two_shards_is_named(save: Save) -> None:
    index = shards(save, "m", one={"a": torch.zeros(2)}, two={"model.denoiser.b": torch.ones(2), "c": torch.ones(2)})
    save("m-one.safetensors", {"a": torch.zeros(2), "denoiser.b": torch.zeros(2)})
    assert error_of(index) == f"{index}: denoiser.b is in more than one shard. Remove one of them."


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "\xff"])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(text, encoding="latin-1")
    assert error_of(index) == f"{index} is not an index of shards: it has no readable `weight_map`."


def test_a_folder_stands_for_the_one_checkpoint_in_it(save: Save) -> None:
    path = save("one/model.safetensors", {"a": torch.ones(2)})
    save("one/model.ckpt", {"b": torch.ones(2)})
    assert list(open_checkpoint(path.parent).specs) == ["a"]
    path = save("two/model.ckpt", {"b": torch.ones(2)})
    assert list(open_checkpoint(path.parent).specs) == ["b"]


def test_a_folder_with_several_or_none(save: Save, tmp_path: Path) -> None:
    for name in ("b", "a"):
        save(f"several/{name}.safetensors", {"a": torch.ones(2)})
    several = tmp_path / "several"
    text = f"{several} holds several checkpoints: a.safetensors, b.safetensors. Name one."
    assert error_of(several) == text
    (tmp_path / "none").mkdir()
    assert error_of(tmp_path / "none") == f"{tmp_path / 'none'} holds no .safetensors or .ckpt file."


def test_a_path_that_is_not_there_names_its_neighbours(save: Save, tmp_path: Path) -> None:
    missing = tmp_path / "no.pth"
    assert error_of(missing) == f"{missing} does not exist. The folder {tmp_path} is empty."
    save("tuned.ckpt", {"a": torch.ones(2)})
    save("base.safetensors", {"a": torch.ones(2)})
    assert error_of(missing) == f"{missing} does not exist. The folder {tmp_path} has base.safetensors, tuned.ckpt."
    deeper = tmp_path / "no" / "x.safetensors"
    assert error_of(deeper) == f"{deeper} does not exist. There is no folder {tmp_path / 'no'}."
    close = tmp_path / "tune.ckpt"
    assert error_of(close) == f"{close} does not exist. Did you mean {tmp_path / 'tuned.ckpt'}?"


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt", "a.safetensors.index.json"])
def test_a_file_that_cannot_be_opened_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"x")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    monkeypatch.setattr("pathlib.Path.read_text", refuse)
    monkeypatch.setattr("zipfile.is_zipfile", refuse)
    assert error_of(path) == f"{path} cannot be read: Permission denied."


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
def test_tensors_outlive_the_reader_and_its_file(save: Save, name: str) -> None:
    path = save(name, {"a": torch.arange(1000.0)})
    with open_checkpoint(path) as found:
        tensor = found.read("a")
    del found
    path.unlink()
    assert torch.equal(tensor, torch.arange(1000.0))


def test_the_component_is_the_denoiser_of_an_lbm(save: Save) -> None:
    tensors = {
        "model.denoiser.a.weight": torch.ones(2),
        "model.vae.b": torch.ones(1),
        "model.num_iterations": torch.ones(1),
    }
    with open_checkpoint(save("a.ckpt", tensors)) as found:
        denoiser = found.component()
        assert (denoiser.prefix, list(denoiser), len(denoiser)) == ("denoiser.", ["a.weight"], 1)
        assert "a.weight" in denoiser
        assert "vae.b" not in denoiser
        assert torch.equal(denoiser.read(next(iter(denoiser))), torch.ones(2))
        assert list(found.component("vae.")) == ["b"]
        assert len(found.component("")) == 3


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("denoiser.a.lora_up.weight", "is a LoRA, not a checkpoint. "),
        ("base_model.model.a.lora_A.weight", "is a PEFT adapter, not a checkpoint. "),
    ],
)
def test_a_lora_in_the_place_of_a_checkpoint_is_named(save: Save, key: str, text: str) -> None:
    path = save("a.safetensors", {key: torch.ones(2)})
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path).component()
    assert str(caught.value) == f"{path} {text}Give this file as lora_path, and the model's checkpoint here."


def test_an_index_that_names_the_wrong_shard_is_refused(tmp_path: Path) -> None:
    for name, key in (("one", "a"), ("two", "b")):
        save_file({key: torch.ones(2)}, tmp_path / f"{name}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    assert set(open_checkpoint(index).specs) == {"a", "b"}
    index.write_text(json.dumps({"weight_map": {"a": "two.safetensors", "b": "one.safetensors"}}))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(index)
    assert str(caught.value) == (
        f"{index} does not belong to its shards: a is not in two.safetensors, b is not in one.safetensors. "
        "Download the index and its shards again."
    )


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_a_fifo_does_not_hang(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"x.{suffix}")
    with pytest.raises(CheckpointError, match=r"cannot be read: Not a regular file\.$"):
        open_checkpoint(tmp_path / f"x.{suffix}")


@pytest.mark.parametrize(
    ("key", "short"),
    [
        ("denoiser.conv_in.weight", "denoiser.conv_in.weight"),
        ("model.denoiser.conv_in.weight", "denoiser.conv_in.weight"),
        ("module.denoiser.conv_in.weight", "denoiser.conv_in.weight"),
        ("module.model.denoiser.conv_in.weight", "denoiser.conv_in.weight"),
        ("model.module.denoiser.conv_in.weight", "denoiser.conv_in.weight"),
        ("model._orig_mod.denoiser.conv_in.weight", "denoiser.conv_in.weight"),
        ("_orig_mod.module.model.denoiser._orig_mod.mid.weight", "denoiser.mid.weight"),
        ("_forward_module.model.vae.vae_model.encoder.conv_in.bias", "vae.vae_model.encoder.conv_in.bias"),
        ("denoiser.block._fsdp_wrapped_module._checkpoint_wrapped_module.conv.weight", "denoiser.block.conv.weight"),
        ("model.num_iterations", "num_iterations"),
        # names of other networks
        ("model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.input_blocks.0.0.weight"),
        ("model.0.conv.weight", "model.0.conv.weight"),
        ("backbone.module.conv.weight", "backbone.module.conv.weight"),
        ("module", "module"),
        ("model", "model"),
        ("weight", "weight"),
    ],
)
def test_wrappers_go_and_names_stay(key: str, short: str) -> None:
    assert normalized(key) == short
    assert normalized(short) == short


def test_two_keys_that_become_one_are_refused() -> None:
    with pytest.raises(CheckpointError) as caught:
        normalized_keys(["denoiser.a", "model.denoiser.a", "module.c", "c"], "x.ckpt")
    assert str(caught.value) == (
        "x.ckpt: these keys collide once wrapper names such as _orig_mod are removed: denoiser.a and model.denoiser.a, "
        "module.c and c. Remove one of each pair."
    )


M = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT = M.replace(".", "_")


def lora(name: str) -> FileKind:
    return FileKind(name, "lora")


def foreign(name: str) -> FileKind:
    return FileKind(name, "foreign")


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ([f"denoiser.{M}.lora_up.weight", f"denoiser.{M}.lora_down.weight"], NATIVE),
        ([f"denoiser.{M}.lora_up.int8", f"denoiser.{M}.lora_unit"], NATIVE),
        ([f"{M}.lora_up.weight"], NATIVE),
        (["denoiser.conv_in.diff", "denoiser.conv_in.diff_b"], NATIVE),
        ([f"lora_unet_{FLAT}.lora_up.weight"], lora("a LoRA in the format of kohya's sd-scripts")),
        (["lora_te1_text_model_x.alpha"], lora("a LoRA in the format of kohya's sd-scripts")),
        ([f"lora_unet_{FLAT}.hada_w1_a"], lora("a LyCORIS file (LoHa)")),
        ([f"lora_unet_{FLAT}.lokr_w2"], lora("a LyCORIS file (LoKr)")),
        ([f"lycoris_{FLAT}.lora_up.weight"], lora("a LyCORIS file")),
        ([f"base_model.model.{M}.lora_A.weight"], lora("a PEFT adapter")),
        ([f"unet.{M}.lora_A.weight"], lora("a LoRA in the format of diffusers")),
        ([f"unet.{M}.lora.down.weight"], lora("a LoRA in the format of diffusers")),
        (["unet.x.attn1.processor.to_q_lora.down.weight"], lora("a LoRA in the format of diffusers")),
        (["diffusion_model.input_blocks.4.1.proj_in.lora_up.weight"], lora("a LoRA in ComfyUI's format")),
        ([f"{M}.lora_A.weight"], lora("a LoRA with the keys of PEFT or FastVideo")),
        (
            ["unet:0:up", "unet:0:down"],
            foreign("a LoRA in the format of cloneofsimo's lora, which names no layers"),
        ),
        ([f"lycoris_{FLAT}.oft_blocks"], foreign("an OFT or BOFT file, which turns weights by a rotation")),
        ([f"lycoris_{FLAT}.a1.weight"], foreign("a GLoRA file, which scales and shifts weights")),
        ([f"lycoris_{FLAT}.on_input"], foreign("an IA3 file, which scales inputs or outputs")),
        (["base_model.model.to_k.ia3_l"], foreign("an IA3 file, which scales inputs or outputs")),
        (
            ["base_model.model.to_k.vera_lambda_b"],
            foreign("a VeRA file, whose factors are random numbers that it does not hold"),
        ),
        (["a1.weight", "block.a1.weight"], None),
        (
            [f"denoiser.{M}.lora_up.weight", f"denoiser.{M}.dora_scale"],
            lora("a DoRA"),
        ),
        ([f"denoiser.{M}.weight", "vae.vae_model.decoder.conv_in.weight"], FileKind("an LBM checkpoint", "network")),
        (["encoder.conv_in.weight", "decoder.conv_out.weight", "quant_conv.bias"], FileKind("a VAE alone", "network")),
        (["vae.vae_model.encoder.a", "vae.vae_model.decoder.b"], FileKind("a VAE alone", "network")),
        (
            ["model.diffusion_model.out.2.weight", "first_stage_model.decoder.a"],
            FileKind("a single-file Stable Diffusion checkpoint", "network"),
        ),
        (["conv_in.weight", f"{M}.weight"], FileKind("a UNet of diffusers alone", "network")),
        (["layer.weight"], None),
        ([], None),
    ],
)
def test_a_file_is_known_by_its_keys(keys: list[str], kind: FileKind | None) -> None:
    assert kind_of(keys, {}) == kind


def test_our_own_files_are_known_by_their_header() -> None:
    assert kind_of(["conv_in.diff"], {"lbm_lora_format": "1"}) == NATIVE
    statistics = kind_of(["inputs.conv_in.triangle"], {"lbm_lora_statistics": "1"})
    assert statistics == FileKind("a file of calibration statistics", "statistics")


TENSORS = {
    "a.weight": torch.arange(12.0).reshape(3, 4),
    "a.bias": torch.arange(3.0).bfloat16(),
    "counter": torch.tensor(7),
    "empty": torch.zeros(0, 3).half(),
    "mask": torch.tensor([True, False, True]),
}


def of(tensors: Mapping[str, Tensor]) -> Fingerprint:
    builder = FingerprintBuilder()
    for name, tensor in tensors.items():
        builder.add(ParamName(name), tensor)
    return builder.build()


def test_the_digest_of_known_tensors_is_part_of_the_format() -> None:
    assert of(TENSORS).digest == "398ae13046c53270986893b9e267e403"
    assert of(TENSORS).packed() == "3051ac94e7fcfe24de7f16600ae252e4a8392144"


@pytest.mark.parametrize("prefix", ["", "denoiser.", "model.denoiser.", "module.model.denoiser._orig_mod."])
@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
def test_container_order_and_prefix_do_not_matter(save: Save, name: str, prefix: str) -> None:
    expected = of(TENSORS)
    for keys in (list(TENSORS), list(reversed(TENSORS))):
        path = save(name, {prefix + key: TENSORS[key] for key in keys})
        assert fingerprint(open_checkpoint(path).component()) == expected


CHANGES: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "one bit": lambda t: t["a.bias"].view(torch.int16)[1].bitwise_xor_(1),
    "the sign of a zero": lambda t: t["a.weight"][0, 0].neg_(),
    "dtype, same bytes": lambda t: t.update({"a.bias": t["a.bias"].view(torch.float16)}),
    "shape, same bytes": lambda t: t.update({"a.weight": t["a.weight"].reshape(4, 3)}),
    "shape of an empty tensor": lambda t: t.update({"empty": torch.zeros(0, 4).half()}),
    "counter": lambda t: t["counter"].add_(1),
    "a name": lambda t: t.update({"b.bias": t.pop("a.bias")}),
    "one more": lambda t: t.update({"z": torch.zeros(0)}),
    "one less": lambda t: t.__delitem__("mask"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_changes_the_digest(change: str) -> None:
    tensors = {name: tensor.clone() for name, tensor in TENSORS.items()}
    assert of(tensors) == of(TENSORS)
    CHANGES[change](tensors)
    assert of(tensors).digest != of(TENSORS).digest


def test_the_tensors_that_differ_are_named() -> None:
    packed = of(TENSORS).packed()
    assert differing(packed, of(TENSORS)) == []
    changed = {name: tensor.clone() for name, tensor in TENSORS.items()}
    changed["mask"][0], changed["a.weight"][2, 3] = False, 0
    assert differing(packed, of(changed)) == ["a.weight", "mask"]
