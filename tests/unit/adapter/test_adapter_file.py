"""Adapter files: written and read back, those of the earlier implementation, and folders of them."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lbm_lora.adapter import (
    FORMAT,
    Adapter,
    AdapterMetadata,
    LoraModule,
    Wishes,
    load_adapter,
    save_adapter,
)
from lbm_lora.adapter.adapter_file import is_unchanged, lora_digest, lora_in, plan_files
from lbm_lora.adapter.formats import Saved
from lbm_lora.errors import AdapterError, CheckpointError, OutputError
from lbm_lora.files import Outputs
from lbm_lora.naming import ModuleName, ParamName

Rand = Callable[..., Tensor]
SHAPES = st.lists(st.integers(1, 5), min_size=2, max_size=2) | st.lists(st.integers(1, 4), min_size=4, max_size=4)
NAMES = st.from_regex(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+){0,3}", fullmatch=True).filter(lambda n: len(n) < 30)
METADATA = AdapterMetadata(FORMAT, "d" * 32, "0123abcd" * 3, "e" * 32, {"lbm_lora_counts": "{}", "note": "Größe"})


def lora(name: str, shape: list[int], rank: int, alpha: float, dtype: torch.dtype) -> LoraModule:
    generator = torch.Generator().manual_seed(rank)
    down = torch.randn(rank, *shape[1:], generator=generator).to(dtype)
    up = torch.randn(shape[0], rank, *(1 for _ in shape[2:]), generator=generator).to(dtype)
    return LoraModule(ModuleName(name), down, up, alpha)


def same(first: Adapter, second: Adapter) -> bool:
    if (set(first.modules), set(first.dense)) != (set(second.modules), set(second.dense)):
        return False
    for name, module in first.modules.items():
        other = second.modules[name]
        tensors = ((module.up, other.up), (module.down, other.down))
        if module.alpha != other.alpha or not all(a.dtype == b.dtype and torch.equal(a, b) for a, b in tensors):
            return False
    return all(torch.equal(delta, second.dense[name]) for name, delta in first.dense.items())


@pytest.mark.parametrize("prefix", ["", "denoiser."])
@given(
    modules=st.dictionaries(NAMES, st.tuples(SHAPES, st.integers(1, 5), st.floats(-100, 100, width=32)), max_size=3),
    dense=st.dictionaries(
        st.tuples(NAMES, st.sampled_from([".weight", ".bias", ".running_mean", ""])).map("".join),
        st.lists(st.integers(0, 4), max_size=3),
        min_size=1,
        max_size=3,
    ),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_an_adapter_is_written_and_read_back(
    tmp_path: Path,
    prefix: str,
    modules: Mapping[str, tuple[list[int], int, float]],
    dense: Mapping[str, list[int]],
    dtype: torch.dtype,
) -> None:
    path = tmp_path / "x.safetensors"
    adapter = Adapter(
        {ModuleName(name): lora(name, *values, dtype) for name, values in modules.items()},
        {ParamName(n): torch.rand(s).to(dtype) for n, s in dense.items() if n.removesuffix(".weight") not in modules},
        METADATA,
        prefix,
    )
    if not adapter.params:
        return
    save_adapter(adapter, path)
    found = load_adapter(path)
    assert same(adapter, found)
    assert (found.prefix, found.path, found.metadata) == (prefix, path, METADATA)


def test_the_documented_keys(tmp_path: Path) -> None:
    modules = [lora("a.b", [4, 6], 2, 2.0, torch.bfloat16), lora("c", [4, 3, 3, 3], 2, 1.5, torch.bfloat16)]
    dense = {name: torch.ones(4).bfloat16() for name in ("a.b.bias", "n.weight", "bn.running_mean")}
    adapter = Adapter(
        {module.name: module for module in modules},
        {ParamName(name): delta for name, delta in dense.items()},
        prefix="denoiser.",
    )
    save_adapter(adapter, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        found = {key: (file.get_tensor(key).dtype, tuple(file.get_tensor(key).shape)) for key in file.keys()}  # noqa: SIM118
        assert file.get_tensor("denoiser.c.alpha").item() == 1.5
    assert found == {
        "denoiser.a.b.lora_up.weight": (torch.bfloat16, (4, 2)),
        "denoiser.a.b.lora_down.weight": (torch.bfloat16, (2, 6)),
        "denoiser.a.b.alpha": (torch.float32, ()),
        "denoiser.a.b.diff_b": (torch.bfloat16, (4,)),
        "denoiser.c.lora_up.weight": (torch.bfloat16, (4, 2, 1, 1)),
        "denoiser.c.lora_down.weight": (torch.bfloat16, (2, 3, 3, 3)),
        "denoiser.c.alpha": (torch.float32, ()),
        "denoiser.n.diff": (torch.bfloat16, (4,)),
        "denoiser.bn.running_mean.diff_param": (torch.bfloat16, (4,)),
    }


def eight_bit(scaling: float = 1.0) -> Adapter:
    modules = [lora("a.b", [4, 6], 2, 2 * scaling, torch.float32), lora("c", [4, 3, 3, 3], 3, 3.0, torch.float32)]
    dense = {ParamName("a.b.bias"): torch.tensor([0.1, -2.0, 3.0]).half()}
    return Adapter({module.name: module for module in modules}, dense, METADATA, prefix="denoiser.", dtype=torch.int8)


def test_the_keys_of_factors_in_8_bits(tmp_path: Path) -> None:
    save_adapter(eight_bit(), tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        found = {key: (file.get_tensor(key).dtype, tuple(file.get_tensor(key).shape)) for key in file.keys()}  # noqa: SIM118
    assert found == {
        "denoiser.a.b.lora_up.int8": (torch.int8, (4, 2)),
        "denoiser.a.b.lora_down.int8": (torch.int8, (2, 6)),
        "denoiser.a.b.lora_unit": (torch.float32, (2,)),
        "denoiser.a.b.dense_b": (torch.float16, (3,)),
        "denoiser.c.lora_up.int8": (torch.int8, (4, 3, 1, 1)),
        "denoiser.c.lora_down.int8": (torch.int8, (3, 3, 3, 3)),
        "denoiser.c.lora_unit": (torch.float32, (3,)),
    }


@pytest.mark.parametrize("scaling", [1.0, -0.37])
def test_factors_in_8_bits_are_read_back(tmp_path: Path, scaling: float) -> None:
    """The first time they are rounded; then they stay as they are, byte for byte."""
    adapter, path = eight_bit(scaling), tmp_path / "x.safetensors"
    save_adapter(adapter, path)
    found = load_adapter(path)
    assert (found.dtype, found.metadata) == (torch.int8, METADATA)
    for name, module in adapter.modules.items():
        delta = module.delta()
        assert float((found.modules[name].delta() - delta).norm()) < 0.01 * float(delta.norm())
        assert found.modules[name].shape == module.shape
        assert found.modules[name].scaling == 1
    assert torch.equal(found.dense[ParamName("a.b.bias")], adapter.dense[ParamName("a.b.bias")])
    first = path.read_bytes()
    save_adapter(found, path)
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("a.lora_unit", None, "a has no lora_unit. The file is incomplete."),
        (
            "a.lora_unit",
            torch.ones(3),
            r"lora_unit \(3,\) fp32 do not fit together: expected int8, int8, and one fp32 number",
        ),
        ("a.lora_up.int8", torch.ones(4, 2), r"lora_up \(4, 2\) fp32, lora_down"),
        ("a.lora_unit", torch.tensor([1.0, float("nan")]), "lora_unit must be above 0 and finite"),
    ],
)
def test_damaged_factors_in_8_bits(tmp_path: Path, key: str, value: Tensor | None, text: str) -> None:
    tensors: dict[str, Tensor] = {
        "a.lora_up.int8": torch.ones(4, 2, dtype=torch.int8),
        "a.lora_down.int8": torch.ones(2, 6, dtype=torch.int8),
        "a.lora_unit": torch.ones(2),
    }
    if value is None:
        del tensors[key]
    else:
        tensors[key] = value
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(AdapterError, match=text):
        load_adapter(tmp_path / "x.safetensors")


def test_the_earlier_implementation_means_scaling_1(tmp_path: Path, rand: Rand) -> None:
    """Its alpha is the rank that was asked for, in bf16: 9999 became 9984, and conv_out has rank 4 of it."""
    shapes = {"denoiser.conv_out": (4, (36,)), "denoiser.mid.to_q": (8, (8,))}
    tensors: dict[str, Tensor] = {}
    for key, (rank, columns) in shapes.items():
        tensors[f"{key}.lora_up.weight"] = rand(rank, rank).bfloat16()
        tensors[f"{key}.lora_down.weight"] = rand(rank, *columns).bfloat16()
        tensors[f"{key}.alpha"] = torch.tensor(9999.0).bfloat16()
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"lbm_extraction_method": "all_layers_analysis", "ss_network_alpha": "9999"})
    found = load_adapter(path)
    assert found.metadata.is_earlier_implementation
    assert {module.scaling for module in found.modules.values()} == {1.0}
    delta = found.delta(ParamName("conv_out.weight"))
    assert delta is not None
    up, down = tensors["denoiser.conv_out.lora_up.weight"], tensors["denoiser.conv_out.lora_down.weight"]
    torch.testing.assert_close(delta, up.float() @ down.float())
    save_adapter(found, tmp_path / "again.safetensors")  # alpha is then the stored rank
    assert {m.scaling for m in load_adapter(tmp_path / "again.safetensors").modules.values()} == {1.0}
    assert {m.scaling for m in load_adapter(path, alpha_is="file").modules.values()} == {2496.0, 1248.0}


Ranks = dict[str, tuple[tuple[int, ...], int, float]]
"""Module -> shape of its weight, stored rank, alpha."""

EARLIER: dict[str, Ranks] = {
    "rank 6, conv rank 16": {
        "conv_out": ((4, 6, 3, 3), 4, 16.0),
        "a": ((8, 9), 6, 6.0),
        "c": ((20, 20, 1, 1), 16, 16.0),
    },
    "full rank": {"conv_out": ((4, 6, 3, 3), 4, 9984.0), "a": ((8, 9), 8, 9984.0)},
}


def write_ranks(path: Path, ranks: Ranks, **metadata: str) -> None:
    modules = [lora(name, list(shape), rank, alpha, torch.bfloat16) for name, (shape, rank, alpha) in ranks.items()]
    save_adapter(Adapter({m.name: m for m in modules}, {}, AdapterMetadata(facts={"by": "another"})), path)
    if metadata:
        save_file(load_file(path), path, metadata=metadata)


@pytest.mark.parametrize("name", EARLIER)
def test_the_earlier_implementation_is_recognised_without_its_metadata(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.safetensors"
    write_ranks(path, EARLIER[name])
    above = sum(alpha > 1.01 * rank for _, rank, alpha in EARLIER[name].values())
    with pytest.warns(UserWarning, match="alpha exceeds the rank") as caught:
        found = load_adapter(path)
    assert {module.scaling for module in found.modules.values()} == {1.0}
    assert [str(warning.message) for warning in caught] == [
        f"{path}: alpha exceeds the rank on {above} of {len(EARLIER[name])} modules, all of them at the highest "
        "rank of their matrix. Alpha is therefore read as the requested rank, and the scaling is 1. To scale by alpha "
        "as stored: lora_alpha_is file."
    ]
    as_it_stands = load_adapter(path, alpha_is="file")
    assert {module.alpha for module in as_it_stands.modules.values()} == {a for _, _, a in EARLIER[name].values()}
    assert {module.scaling for module in load_adapter(path, alpha_is="rank").modules.values()} == {1.0}


NOT_READ = (
    "This format is not read. Fuse the file into its model with the program that made it, then extract a LoRA from "
    "the result."
)
EXTRACT = "`lbm-lora extract` makes a LoRA of a tuned checkpoint."


@pytest.mark.parametrize(
    ("key", "metadata", "text"),
    [
        ("denoiser.conv_in.weight", {}, f"is an LBM checkpoint, not a LoRA. {EXTRACT}"),
        ("vae.vae_model.decoder.a", {}, f"is a VAE alone, not a LoRA. {EXTRACT}"),
        (
            "unet:0:up",
            {},
            f"is a LoRA in the format of cloneofsimo's lora, which names no layers. {NOT_READ}",
        ),
        ("lycoris_conv_in.oft_blocks", {}, f"is an OFT or BOFT file, which turns weights by a rotation. {NOT_READ}"),
        (
            "inputs.a.triangle",
            {"lbm_lora_statistics": "1"},
            "is a file of calibration statistics, not a LoRA. Give it with calibration.",
        ),
    ],
)
def test_another_kind_of_file_is_named(tmp_path: Path, key: str, metadata: dict[str, str], text: str) -> None:
    path = tmp_path / "x.safetensors"
    save_file({key: torch.ones(4, 4)}, path, metadata)
    with pytest.raises(AdapterError) as caught:
        load_adapter(path)
    assert str(caught.value) == f"{path} {text}"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", ["a.lora_up.weight", "a.lora_down.weight", "a.alpha", "b.diff"])
def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path: Path, key: str, number: float) -> None:
    tensors = {
        "a.lora_up.weight": torch.ones(3, 2),
        "a.lora_down.weight": torch.ones(2, 3),
        "a.alpha": torch.tensor(2.0),
        "b.diff": torch.ones(3),
    }
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path)
    assert len(load_adapter(path)) == 2
    tensors[key].view(-1)[-1] = number
    save_file(tensors, path)
    name = "a" if key.startswith("a") else r"b\.weight"
    with pytest.raises(AdapterError, match=rf"1 of 2 deltas hold NaN or infinite values: {name}\. The file is damaged"):
        load_adapter(path)


def made(value: float = 1.0, alpha: float = 2.0) -> Adapter:
    names = [ModuleName("a"), ModuleName("b")]
    modules = {name: LoraModule(name, torch.ones(2, 4), torch.full((8, 2), value), alpha) for name in names}
    return Adapter(modules, {ParamName("c.bias"): torch.ones(3)})


def test_what_was_loaded_is_unchanged(tmp_path: Path) -> None:
    loaded = load_adapter(made().save(tmp_path / "x.safetensors"))
    assert is_unchanged(loaded)
    assert not is_unchanged(loaded.filtered(lambda name: not name.startswith("a")))
    assert not is_unchanged(loaded.cast(torch.float16))
    assert not is_unchanged(
        dataclasses.replace(loaded, metadata=dataclasses.replace(loaded.metadata, facts={"a": "b"}))
    )
    assert not is_unchanged(made())


EXPORTED = AdapterMetadata(FORMAT, "d" * 32, "0123abcd", "e" * 32, {"ss_network_dim": "2", "note": "Größe"})
TO_Q, NORM = ModuleName("mid_block.attentions.0.transformer_blocks.0.attn1.to_q"), "mid_block.resnets.0.norm1"
LORA = Adapter(
    {TO_Q: LoraModule(TO_Q, torch.ones(2, 3), torch.ones(4, 2), 1.5)},
    {ParamName(f"{NORM}.weight"): torch.ones(3), ParamName("conv_in.bias"): torch.full((3,), 2.0)},
    EXPORTED,
    "denoiser.",
)


def test_the_header_names_the_format_and_no_reader_takes_the_file_for_a_native_one(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    assert save_adapter(LORA, path, format="comfyui") == Saved(path)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    assert header["lbm_lora_export"] == "comfyui 1"
    assert "lbm_lora_format" not in header
    assert header["ss_network_dim"] == "2"
    assert load_adapter(path).metadata == EXPORTED


def test_tensors_of_several_dtypes_get_the_one_that_holds_them_all(tmp_path: Path) -> None:
    path = LORA.save(tmp_path / "x.safetensors", "comfyui")
    save_file({k: t.half() if k.endswith("diff_b") else t.bfloat16() for k, t in load_file(path).items()}, path)
    found = load_adapter(path)
    assert {t.dtype for t in (found.modules[TO_Q].up, *found.dense.values())} == {torch.float32}
    assert torch.equal(found.dense[ParamName("conv_in.bias")], LORA.dense[ParamName("conv_in.bias")])


@pytest.mark.parametrize("format", ["native", "comfyui"])
@pytest.mark.parametrize(
    ("wishes", "dropped"),
    [
        (Wishes(biases="drop"), ("conv_in.bias",)),
        (Wishes(norms="drop"), (f"{NORM}.weight",)),
        (Wishes("drop", "drop"), (f"{NORM}.weight", "conv_in.bias")),
    ],
)
def test_what_is_to_be_dropped_is_dropped_and_named(
    tmp_path: Path, format: str, wishes: Wishes, dropped: tuple[str, ...]
) -> None:
    path = tmp_path / "x.safetensors"
    measured = replace(LORA, metadata=replace(LORA.metadata, facts={"lbm_lora_errors": "{}", "note": "kept"}))
    saved = save_adapter(measured, path, format="native" if format == "native" else "comfyui", wishes=wishes)
    assert saved.dropped == dropped
    found = load_adapter(path)
    assert set(found.dense) == LORA.dense.keys() - set(dropped)
    assert ("lbm_lora_errors" in found.metadata.facts, found.metadata.facts["note"]) == (not dropped, "kept")


def test_a_format_with_a_config_is_a_folder(tmp_path: Path) -> None:
    wishes, folder = Wishes("drop", "drop"), tmp_path / "lora_1.5"
    assert save_adapter(LORA, folder, format="peft", wishes=wishes).path == folder
    assert sorted(file.name for file in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    with pytest.raises(OutputError, match=r"the format peft is a folder of two files\. Give the path of a folder\."):
        save_adapter(LORA, tmp_path / "lora.safetensors", format="peft", wishes=wishes)


def test_a_rerun_replaces_both_files_of_a_folder_but_no_config_of_others(tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")

    def check() -> None:
        outputs = Outputs()
        plan_files(outputs, folder, "peft")
        outputs.check()

    with pytest.raises(OutputError, match=r"adapter_config\.json exists, and lbm-lora did not write it"):
        check()
    save_adapter(LORA, folder, format="peft", wishes=Wishes("drop", "drop"))
    check()


SMALL_LORA = Adapter(
    {ModuleName("a"): LoraModule(ModuleName("a"), torch.ones(2, 3), torch.ones(4, 2), 2.0)},
    {},
    AdapterMetadata(FORMAT),
    "denoiser.",
)
OTHER = {"layer.weight": torch.ones(2)}


def write(folder: Path, name: str) -> None:
    if name == "native.safetensors" or name == "native_2.safetensors":
        SMALL_LORA.save(folder / name)
    elif name == "pytorch_lora_weights.safetensors":
        SMALL_LORA.save(folder / name, "diffusers")
    elif name == "adapter_model.safetensors":
        SMALL_LORA.save(folder, "peft")
    elif name.endswith(".bin"):
        torch.save({"base_model.model.a.lora_A.weight": torch.ones(2, 3)}, folder / name)
    else:
        save_file(OTHER, folder / name)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["adapter_model.safetensors"], "adapter_model.safetensors"),
        (["adapter_model.safetensors", "adapter_model.bin"], "adapter_model.safetensors"),
        (["adapter_model.bin"], "adapter_model.bin"),
        (["pytorch_lora_weights.safetensors", "model.safetensors"], "pytorch_lora_weights.safetensors"),
        (["pytorch_lora_weights.safetensors", "native.safetensors"], "native.safetensors"),
        (["native.safetensors"], ""),
        (["model.safetensors", "model_2.safetensors"], ""),
    ],
)
def test_a_native_lora_comes_first_then_known_names(tmp_path: Path, names: list[str], found: str) -> None:
    for name in names:
        write(tmp_path, name)
    assert lora_in(tmp_path) == tmp_path / found


def test_several_native_loras_are_refused(tmp_path: Path) -> None:
    for name in ("native.safetensors", "native_2.safetensors"):
        write(tmp_path, name)
    with pytest.raises(AdapterError, match=r"holds several LoRAs: native\.safetensors, native_2\.safetensors\. Name"):
        lora_in(tmp_path)


def test_the_digest_is_of_all_that_is_read(tmp_path: Path) -> None:
    SMALL_LORA.save(tmp_path / "peft", "peft")
    folder, weights = tmp_path / "peft", tmp_path / "peft" / "adapter_model.safetensors"
    before = lora_digest(folder), lora_digest(weights)
    (folder / "notes.txt").write_text("mine")
    assert (lora_digest(folder), lora_digest(weights)) == before
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": ', '"lora_alpha":  '))
    assert lora_digest(folder) != before[0]
    assert lora_digest(weights) != before[1]
    native = SMALL_LORA.save(folder / "native.safetensors")
    with pytest.raises(CheckpointError, match=r"gone was moved or removed while it was in use"):
        lora_digest(folder / "gone")
    alone = lora_digest(native)
    config.unlink()
    assert lora_digest(native) == alone, "it is not read with it"
    assert lora_digest(native.rename(folder / "renamed.safetensors")) == alone
