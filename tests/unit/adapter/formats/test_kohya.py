"""Keys with _ for the dots of a module's name, and ComfyUI's own."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from lbm_lora.adapter import FORMAT, Adapter, AdapterMetadata, LoraModule, Wishes, load_adapter, save_adapter
from lbm_lora.adapter.formats import Source, codec_named
from lbm_lora.adapter.formats.names import BY_FLAT, BY_FLAT_SGM, BY_SGM, SGM, flat, is_norm
from lbm_lora.adapter.formats.readers import READERS
from lbm_lora.choices import FormatName
from lbm_lora.errors import AdapterError
from lbm_lora.naming import ModuleName, ParamName, bias_of, weight_of

FORMATS: list[FormatName] = ["kohya", "kohya-diffusers", "lycoris"]
METADATA = AdapterMetadata(FORMAT, "d" * 32, "0123abcd", "e" * 32, {"ss_network_dim": "2", "note": "Größe"})
NORMS = [name for name in SGM if is_norm(weight_of(name))]
LAYERS = [name for name in SGM if name not in NORMS]
SHAPES = st.lists(st.integers(1, 5), min_size=2, max_size=2) | st.lists(st.integers(1, 3), min_size=4, max_size=4)
ALPHAS = st.floats(-100, 100, width=32).filter(lambda alpha: alpha != 0)


def lora(name: ModuleName, shape: list[int], rank: int, alpha: float, dtype: torch.dtype) -> LoraModule:
    generator = torch.Generator().manual_seed(rank)
    down = torch.randn(rank, *shape[1:], generator=generator).to(dtype)
    up = torch.randn(shape[0], rank, *(1 for _ in shape[2:]), generator=generator).to(dtype)
    return LoraModule(name, down, up, alpha)


def contents(adapter: Adapter) -> dict[str, Tensor]:
    factors = {
        f"{name}.{part}": tensor
        for name, module in adapter.modules.items()
        for part, tensor in (("up", module.up), ("down", module.down), ("alpha", torch.tensor(module.alpha)))
    }
    return factors | dict(adapter.dense)


def assert_equal(first: Adapter, second: Adapter) -> None:
    one, other = contents(first), contents(second)
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert (tensor.dtype, tensor.shape) == (other[key].dtype, other[key].shape)
        assert torch.equal(tensor, other[key])


@pytest.mark.parametrize("format", [*FORMATS, "comfyui"])
@given(
    modules=st.dictionaries(
        st.sampled_from(LAYERS), st.tuples(SHAPES, st.integers(1, 5), ALPHAS), min_size=1, max_size=3
    ),
    norms=st.sets(st.sampled_from([f(name) for name in NORMS for f in (weight_of, bias_of)]), max_size=3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_an_adapter_is_written_and_read_back_to_the_bit(
    format: FormatName,
    modules: Mapping[ModuleName, tuple[list[int], int, float]],
    norms: set[ParamName],
    dtype: torch.dtype,
) -> None:
    dense = {name: torch.ones(3).to(dtype) for name in norms} if format in ("lycoris", "comfyui") else {}
    adapter = Adapter({n: lora(n, *values, dtype) for n, values in modules.items()}, dense, METADATA, "denoiser.")
    encoded = codec_named(format).encode(adapter, Wishes())
    header = METADATA.to_header(format) | dict(encoded.header)
    found, _ = codec_named(format).decode(Source(encoded.tensors, header, Path("x")))
    assert_equal(found, adapter)
    assert (AdapterMetadata.from_header(header), found.prefix) == (METADATA, "denoiser.")


CONV, NORM = ModuleName("up_blocks.1.resnets.0.conv_shortcut"), ModuleName("mid_block.resnets.0.norm1")
TO_OUT = ModuleName("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0")
EVERYTHING = Adapter(
    {CONV: lora(CONV, [4, 3, 1, 1], 2, 1.5, torch.bfloat16)},
    {
        weight_of(TO_OUT): torch.randn(4, 3),
        bias_of(TO_OUT): torch.ones(4),
        bias_of(CONV): torch.ones(4),
        bias_of(NORM): torch.ones(3),
    },
)


@pytest.mark.parametrize(
    ("format", "wishes", "keys"),
    [
        (
            "kohya",
            Wishes("drop", "drop"),
            [
                "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0",
                "lora_unet_output_blocks_3_0_skip_connection",
            ],
        ),
        (
            "kohya-diffusers",
            Wishes("drop", "drop"),
            [
                "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0",
                "lora_unet_up_blocks_1_resnets_0_conv_shortcut",
            ],
        ),
    ],
)
def test_keys_of_kohya(tmp_path: Path, format: FormatName, wishes: Wishes, keys: list[str]) -> None:
    path = tmp_path / "x.safetensors"
    saved = save_adapter(EVERYTHING, path, format=format, wishes=wishes)
    assert saved.dropped == (bias_of(TO_OUT), bias_of(CONV), bias_of(NORM))
    assert saved.notes[:1] == ("1 dense matrix written as factors of full rank, exactly.",)
    tensors = load_file(path)
    endings = (".alpha", ".lora_down.weight", ".lora_up.weight")
    assert sorted(tensors) == [key + ending for key in keys for ending in endings]
    assert {key: (t.dtype, tuple(t.shape)) for key, t in tensors.items() if key.endswith("alpha")} == {
        f"{key}.alpha": (torch.float32, ()) for key in keys
    }
    found = load_adapter(path).delta(weight_of(TO_OUT))
    assert found is not None
    assert torch.equal(found, EVERYTHING.dense[weight_of(TO_OUT)])


def test_keys_of_lycoris(tmp_path: Path) -> None:
    lora = EVERYTHING.filtered(lambda name: name != bias_of(CONV))
    path = lora.save(tmp_path / "x.safetensors", "lycoris")
    tensors = load_file(path)
    assert sorted(tensors) == [
        "lycoris_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0.diff",
        "lycoris_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0.diff_b",
        "lycoris_mid_block_resnets_0_norm1.b_norm",
        "lycoris_mid_block_resnets_0_norm1.w_norm",
        "lycoris_up_blocks_1_resnets_0_conv_shortcut.alpha",
        "lycoris_up_blocks_1_resnets_0_conv_shortcut.lora_down.weight",
        "lycoris_up_blocks_1_resnets_0_conv_shortcut.lora_up.weight",
    ]
    assert not tensors["lycoris_mid_block_resnets_0_norm1.w_norm"].any()
    assert load_adapter(path).dense.keys() == lora.dense.keys()


REFUSED = [
    (
        "kohya",
        Wishes(),
        EVERYTHING,
        "the LoRA: the format kohya cannot hold 2 deltas of biases and 1 delta of a norm: "
        f"{TO_OUT}.bias, {CONV}.bias, {NORM}.bias. comfyui holds them. "
        'To leave them out: biases="drop", norms="drop".',
    ),
    (
        "kohya-diffusers",
        Wishes("drop"),
        EVERYTHING,
        f"the LoRA: the format kohya-diffusers cannot hold 1 delta of a norm: {NORM}.bias. "
        'comfyui holds them. To leave them out: norms="drop".',
    ),
    (
        "lycoris",
        Wishes(),
        EVERYTHING,
        f"the LoRA: the format lycoris cannot hold 1 delta of a bias: {CONV}.bias. "
        'comfyui holds them. To leave them out: biases="drop".',
    ),
    (
        "kohya",
        Wishes(norms="replace"),
        EVERYTHING,
        'the format kohya holds deltas only, not norms="replace". Use keep or drop.',
    ),
    (
        "lycoris",
        Wishes("lora_bias"),
        EVERYTHING,
        'the format lycoris holds deltas only, not biases="lora_bias". Use keep or drop.',
    ),
    (
        "lycoris",
        Wishes(),
        Adapter({}, {ParamName("conv_in.running_mean"): torch.ones(3)}),
        "the LoRA: the format lycoris cannot hold 1 delta of another parameter: conv_in.running_mean. "
        "Write it as native.",
    ),
    (
        "kohya",
        Wishes(),
        Adapter({}, {ParamName("head.0.weight"): torch.ones(3, 3)}),
        "the LoRA: the format kohya has keys for the modules of SDXL's UNet only, and not for head.0. "
        "Write the LoRA as comfyui or native.",
    ),
    (
        "kohya",
        Wishes(),
        Adapter({CONV: lora(CONV, [4, 3, 1, 1], 2, 0.0, torch.float32)}, {}),
        f"the LoRA: 1 module with alpha 0, which readers of kohya take for the rank: {CONV}. Remove them.",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("format", "wishes", "adapter", "text"), REFUSED)
def test_a_format_refuses_what_it_cannot_hold(
    tmp_path: Path, format: FormatName, wishes: Wishes, adapter: Adapter, text: str
) -> None:
    with pytest.raises(AdapterError) as caught:
        save_adapter(adapter, tmp_path / "x.safetensors", format=format, wishes=wishes)
    assert str(caught.value) == text
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "format"),
    [
        ("lora_unet_out_2", "kohya"),
        ("lora_unet_conv_out", "kohya-diffusers"),
        ("lycoris_conv_out", "lycoris"),
    ],
)
def test_a_file_of_another_program_is_recognised(tmp_path: Path, key: str, format: FormatName) -> None:
    tensors = {f"{key}.lora_up.weight": torch.ones(4, 2, 1, 1), f"{key}.lora_down.weight": torch.ones(2, 3, 3, 3)}
    save_file(tensors, tmp_path / "x.safetensors")
    found = load_adapter(tmp_path / "x.safetensors")
    assert (found.file_format, list(found.modules)) == (format, ["conv_out"])
    assert found.modules[ModuleName("conv_out")].alpha == 2.0


def test_the_table_is_bijective_in_every_spelling() -> None:
    count = 11 * (3 + 10 * 13) + 17 * 6 + 9  # attentions, resnets, and what stands alone
    assert len(SGM) == len(BY_SGM) == len(BY_FLAT) == len(BY_FLAT_SGM) == count
    for module, name in SGM.items():
        assert BY_SGM[name] == BY_FLAT_SGM[flat(name)] == BY_FLAT[flat(module)] == module
    assert not BY_FLAT.keys() & BY_FLAT_SGM.keys()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",) * 2,
        ("up_blocks.0.resnets.1.conv1", "output_blocks.1.0.in_layers.2"),
        ("up_blocks.1.resnets.0.conv_shortcut", "output_blocks.3.0.skip_connection"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
        ("conv_out", "out.2"),
    ],
)
def test_names_of_the_published_single_file(module: str, name: str) -> None:
    expected = name.replace("down_blocks.1.attentions.0", "input_blocks.4.1")
    assert SGM[ModuleName(module)] == expected


LORA = Adapter(
    {ModuleName("mid.to_q"): LoraModule(ModuleName("mid.to_q"), torch.ones(2, 3), torch.ones(4, 2), 1.5)},
    {ParamName("mid.norm.weight"): torch.ones(3), ParamName("mid.norm.bias"): torch.full((3,), 2.0)},
    prefix="denoiser.",
)


def test_keys_are_the_models_own_and_read_back(tmp_path: Path) -> None:
    encoded = codec_named("comfyui").encode(LORA, Wishes())
    assert sorted(encoded.tensors) == [
        "diffusion_model.mid.norm.diff",
        "diffusion_model.mid.norm.diff_b",
        "diffusion_model.mid.to_q.alpha",
        "diffusion_model.mid.to_q.lora_down.weight",
        "diffusion_model.mid.to_q.lora_up.weight",
    ]
    save_file(dict(encoded.tensors), tmp_path / "x.safetensors")
    found = load_adapter(tmp_path / "x.safetensors")
    assert (found.file_format, found.prefix) == ("comfyui", "denoiser.")
    assert found.modules[ModuleName("mid.to_q")].alpha == 1.5
    assert torch.equal(found.modules[ModuleName("mid.to_q")].delta(), LORA.modules[ModuleName("mid.to_q")].delta())
    assert all(torch.equal(found.dense[name], delta) for name, delta in LORA.dense.items())


def test_a_file_of_fastvideo() -> None:
    tensors = {"mid.to_q.lora_A.weight": torch.ones(2, 3), "mid.to_q.lora_B.weight": torch.ones(4, 2)}
    tensors |= {"mid.norm.diff": torch.ones(3), "mid.norm.diff_b": torch.ones(3), "table.diff_param": torch.ones(2)}
    found = load_adapter(tensors)
    assert (list(found.modules), list(found.dense)) == (["mid.to_q"], ["mid.norm.weight", "mid.norm.bias", "table"])


def test_the_page_on_files_has_the_same_table() -> None:
    page = (Path(__file__).parents[4] / "docs" / "files.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    programs = next(row for row in rows if row[:2] == ["format", "ComfyUI"])[1:]
    for name, readers in READERS.items():
        row = next(row for row in rows if row[0].strip("`") == name and len(row) == len(programs) + 1)
        said = {program for program, cell in zip(programs, row[1:], strict=True) if cell != "no"}
        assert said == {reader.program for reader in readers} - {"lbm-lora"}, name
