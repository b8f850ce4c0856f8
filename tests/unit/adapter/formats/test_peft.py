"""Adapters of PEFT: folders that are written and read back bit for bit, and what other files and state dicts hold."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from lbm_lora.adapter import FORMAT, Adapter, AdapterMetadata, LoraModule, Wishes, load_adapter, save_adapter
from lbm_lora.checkpoint import Component, open_checkpoint
from lbm_lora.errors import AdapterError
from lbm_lora.naming import ModuleName, ParamName

seeded = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
TO_Q, CONV = ModuleName("attn1.to_q"), ModuleName("conv_out")
BASE = {
    "attn1.to_q.weight": torch.ones(5, 3),
    "conv_out.weight": torch.ones(4, 3, 3, 3),
    "conv_out.bias": torch.full((4,), 0.5),
    "conv_in.bias": torch.full((4,), 0.25),
    "norm1.weight": torch.ones(3),
    "norm1.bias": torch.zeros(3),
}


def base() -> Component:
    return open_checkpoint({f"denoiser.{key}": tensor for key, tensor in BASE.items()}).component()


def lora(dtype: torch.dtype = torch.float32, alpha: float = 2.0, dense: Mapping[str, int] | None = None) -> Adapter:
    """A linear of rank 2 and a conv of rank 1, with dense vectors of these names and sizes."""
    torch.manual_seed(0)
    modules = {
        TO_Q: LoraModule(TO_Q, torch.randn(2, 3).to(dtype), torch.randn(5, 2).to(dtype), alpha),
        CONV: LoraModule(CONV, torch.randn(1, 3, 3, 3).to(dtype), torch.randn(4, 1, 1, 1).to(dtype), 1.0),
    }
    vectors = {ParamName(name): (torch.randn(size) / 64).to(dtype) for name, size in (dense or {}).items()}
    return Adapter(modules, vectors, AdapterMetadata(FORMAT, "d" * 32), "denoiser.")


def assert_same(found: Adapter, given: Adapter) -> None:
    assert (found.prefix, found.metadata) == (given.prefix, given.metadata)
    assert found.modules.keys() == given.modules.keys()
    for name, module in given.modules.items():
        assert found.modules[name].alpha == module.alpha
        for one, other in ((found.modules[name].up, module.up), (found.modules[name].down, module.down)):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
    assert found.dense.keys() == given.dense.keys()
    assert all(found.dense[name].dtype == delta.dtype for name, delta in given.dense.items())
    assert all(torch.equal(found.dense[name], delta) for name, delta in given.dense.items())


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


def test_a_folder_of_factors_and_their_config(tmp_path: Path) -> None:
    saved = save_adapter(lora(), tmp_path / "peft", format="peft")
    assert {
        key: tuple(tensor.shape) for key, tensor in load_file(saved.path / "adapter_model.safetensors").items()
    } == {
        "base_model.model.attn1.to_q.lora_A.weight": (2, 3),
        "base_model.model.attn1.to_q.lora_B.weight": (5, 2),
        "base_model.model.conv_out.lora_A.weight": (2, 3, 3, 3),
        "base_model.model.conv_out.lora_B.weight": (4, 2, 1, 1),
    }
    assert config(saved.path) == {
        "alpha_pattern": {},
        "base_model_name_or_path": None,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": 2,
        "lora_bias": False,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 2,
        "rank_pattern": {},
        "target_modules": ["attn1.to_q", "conv_out"],
        "task_type": None,
    }


VECTORS = {"conv_out.bias": 4, "conv_in.bias": 4, "norm1.weight": 3}


@seeded
@given(
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.sampled_from([2.0, 1.0, 16.0, 3.0]),
    st.sampled_from(
        [
            ({}, Wishes()),
            ({"conv_out.bias": 4}, Wishes("lora_bias")),
            ({"conv_out.bias": 4, "norm1.weight": 3}, Wishes("lora_bias", "replace", base())),
            (VECTORS, Wishes("replace", "replace", base())),
            ({"norm1.weight": 3, "norm1.bias": 3}, Wishes("keep", "replace", base())),
        ]
    ),
)
def test_the_way_there_and_back_keeps_every_bit_that_can_be_kept(
    tmp_path: Path, dtype: torch.dtype, alpha: float, case: tuple[dict[str, int], Wishes]
) -> None:
    given_lora = lora(dtype, alpha, case[0])
    saved = save_adapter(given_lora, tmp_path / "peft", format="peft", wishes=case[1])
    found = load_adapter(saved.path, base=base())
    if dtype == torch.float32:  # values in fp32, and a scaling of fp32, round
        assert found.dense.keys() == given_lora.dense.keys()
        torch.testing.assert_close(found.modules[TO_Q].delta(), given_lora.modules[TO_Q].delta())
        for name, delta in given_lora.dense.items():
            torch.testing.assert_close(found.dense[name], delta, rtol=0, atol=1e-7)
    else:
        assert_same(found, given_lora)


@pytest.mark.parametrize(
    ("wishes", "dense", "keys", "fields"),
    [
        (
            Wishes("lora_bias"),
            {"conv_out.bias": 4},
            {"attn1.to_q.lora_B.bias", "conv_out.lora_B.bias"},
            ("none", True, None),
        ),
        (Wishes("drop", "replace", base()), VECTORS, {"norm1.weight", "norm1.bias"}, ("none", False, ["norm1"])),
        (
            Wishes("replace", "replace", base()),
            VECTORS,
            {"conv_out.base_layer.bias", "conv_in.bias", "norm1.weight"},
            ("all", False, None),
        ),
        (
            Wishes("replace", "drop", base()),
            VECTORS,
            {"conv_out.base_layer.bias", "conv_in.bias"},
            ("all", False, None),
        ),
    ],
)
def test_ways_to_write_biases_and_norms(
    tmp_path: Path, wishes: Wishes, dense: dict[str, int], keys: set[str], fields: tuple[object, ...]
) -> None:
    given_lora = lora(dense=dense)
    saved = save_adapter(given_lora, tmp_path / "peft", format="peft", wishes=wishes)
    tensors = load_file(saved.path / "adapter_model.safetensors")
    found = {key.removeprefix("base_model.model."): tensor for key, tensor in tensors.items()}
    assert {key for key in found if not key.endswith(("lora_A.weight", "lora_B.weight"))} == keys
    assert tuple(config(saved.path)[key] for key in ("bias", "lora_bias", "modules_to_save")) == fields
    if "norm1.weight" in keys:
        tuned = BASE["norm1.weight"] + given_lora.dense[ParamName("norm1.weight")]
        assert torch.equal(found["norm1.weight"], tuned)


@pytest.mark.parametrize(
    ("wishes", "dense", "message"),
    [
        (
            Wishes(),
            VECTORS,
            "the LoRA: the format peft cannot hold 2 deltas of biases and 1 delta of a norm: conv_out.bias, "
            'conv_in.bias, norm1.weight. Choose: biases="lora_bias" or "replace" or '
            '"drop", norms="replace" or "drop".',
        ),
        (
            Wishes("lora_bias"),
            {"conv_in.bias": 4},
            "the LoRA: the format peft cannot hold 1 delta of a bias: conv_in.bias. Choose: "
            'biases="replace" or "drop".',
        ),
        (
            Wishes(norms="replace"),
            {"norm1.bias": 3},
            "the LoRA: 1 delta become values that replace the base's: norm1.bias. Give the base: base_model_path.",
        ),
        (
            Wishes(norms="replace", base=base()),
            {"norm1.bias": 9},
            "the LoRA: state dict has no such parameters: norm1.bias.",
        ),
    ],
)
def test_what_has_no_place_is_refused(wishes: Wishes, dense: dict[str, int], message: str) -> None:
    with pytest.raises(AdapterError) as error:
        save_adapter(lora(dense=dense), "nowhere", format="peft", wishes=wishes)
    assert str(error.value) == message


DOWN, UP = torch.randn(2, 3), torch.randn(5, 2)
FACTORS = {"base_model.model.a.lora_A.weight": DOWN, "base_model.model.a.lora_B.weight": UP}


def write(folder: Path, tensors: Mapping[str, Tensor], fields: Mapping[str, Any], name: str = "") -> Path:
    own = {key: tensor.clone() for key, tensor in tensors.items()}
    if name.endswith(".bin"):
        torch.save(own, folder / name)
    else:
        save_file(own, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 3, **fields}))
    return folder


def test_without_a_config_the_scaling_is_1_and_said_to_be() -> None:
    with pytest.warns(UserWarning, match=r"no adapter_config\.json next to it: the scaling of every module is"):
        found = load_adapter(FACTORS)
    assert found.modules[ModuleName("a")].scaling == 1


@pytest.mark.filterwarnings("ignore:.*no adapter_config.json")
def test_the_state_of_a_model_in_memory_is_read() -> None:
    """Frozen values, which are the base's, are no deltas."""
    state = {
        "base_model.model.attn1.to_q.base_layer.weight": BASE["attn1.to_q.weight"],
        "base_model.model.attn1.to_q.lora_A.default.weight": DOWN,
        "base_model.model.attn1.to_q.lora_B.default.weight": UP,
        "base_model.model.conv_out.base_layer.bias": BASE["conv_out.bias"] + 1,
        "base_model.model.norm1.original_module.weight": BASE["norm1.weight"],
        "base_model.model.norm1.modules_to_save.default.weight": BASE["norm1.weight"] * 3,
    }
    found = load_adapter(state, base=base())
    assert found.modules.keys() == {TO_Q}
    assert {name: delta.unique().tolist() for name, delta in found.dense.items()} == {
        "conv_out.bias": [1.0],
        "norm1.weight": [2.0],
    }
    with pytest.raises(AdapterError, match=r"holds 3 keys besides factors: .* with the base: base_model_path"):
        load_adapter(state)
    with pytest.raises(AdapterError, match=r"1 value replace none of state dict, by name and shape: other\.weight"):
        load_adapter({**FACTORS, "base_model.model.other.weight": torch.ones(1)}, base=base())


@pytest.mark.filterwarnings("ignore:.*1 module of DoRA")
def test_a_dora_conv_has_its_magnitudes_on_the_second_axis(tmp_path: Path) -> None:
    torch.manual_seed(0)
    down, up, magnitude = torch.randn(2, 3, 3, 3), torch.randn(4, 2, 1, 1), torch.rand(1, 4, 1, 1)
    tensors = {
        "base_model.model.conv_out.lora_A.weight": down,
        "base_model.model.conv_out.lora_B.weight": up,
        "base_model.model.conv_out.lora_magnitude_vector": magnitude,
    }
    folder = write(tmp_path, tensors, {"use_dora": True})
    tuned = BASE["conv_out.weight"] + load_adapter(folder, base=base()).dense[ParamName("conv_out.weight")]
    torch.testing.assert_close(tuned.flatten(1).norm(dim=1), magnitude.flatten())
    for part, message in (
        ({"lora_magnitude_vector": magnitude[:, :3]}, "conv_out has 3 magnitudes for 4 outputs"),
        ({"lora_B.bias": torch.ones(4)}, "DoRA magnitudes and a bias of lora_B, which is not read"),
    ):
        changed = tensors | {f"base_model.model.conv_out.{key}": value for key, value in part.items()}
        with pytest.raises(AdapterError, match=message):
            load_adapter(write(tmp_path, changed, {"use_dora": True}), base=base())


@pytest.mark.parametrize("kind", ["LOHA", "LOKR"])
def test_products_are_rebuilt_with_the_scaling_of_the_config(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    parts = {
        "LOHA": {name: torch.randn(5, 2) if name.endswith("a") else torch.randn(2, 3) for name in HADA},
        "LOKR": {"lokr_w1": torch.randn(5, 1), "lokr_w2": torch.randn(1, 3)},  # without a rank of their own
    }[kind]
    named = {f"base_model.model.{TO_Q}.{name}": part for name, part in parts.items()}
    save_file(named, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": kind, "r": 2, "alpha": 6.0, "alpha_pattern": {"to_q": 3.0}, "rank_dropout": 0.1}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="rebuilt exactly"):
        found = load_adapter(tmp_path)
    if kind == "LOHA":
        delta = (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    else:
        delta = torch.kron(parts["lokr_w1"], parts["lokr_w2"])
    assert found.file_format == "peft"
    stored = found.delta(ParamName(f"{TO_Q}.weight"))
    assert stored is not None
    assert torch.allclose(stored, 1.5 * delta, atol=1e-5)
