"""Folders of PEFT and their config."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from lbm_lora.adapter import FORMAT, Adapter, AdapterMetadata, LoraModule, Wishes, load_adapter, save_adapter
from lbm_lora.adapter.formats.lora_config import config_of
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


DOWN, UP = torch.randn(2, 3), torch.randn(5, 2)
FACTORS = {"base_model.model.a.lora_A.weight": DOWN, "base_model.model.a.lora_B.weight": UP}


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


LORA = {"unet.a.lora_A.weight": torch.ones(2, 3), "unet.a.lora_B.weight": torch.ones(4, 2)}
BASE_VALUES = {
    "denoiser.a.weight": torch.ones(4, 3),
    "denoiser.a.bias": torch.ones(4),
    "denoiser.n.weight": torch.ones(3),
}


def error_of(tensors: dict[str, Tensor]) -> str:
    with pytest.raises(AdapterError) as caught:
        load_adapter({**LORA, **tensors}, base=open_checkpoint(BASE_VALUES).component())
    return str(caught.value)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a.lora_A.weight", "a.lora_A.default.weight"),
        ("a.lora_magnitude_vector", "a.lora_magnitude_vector.weight"),
        ("a.bias", "a.base_layer.bias"),
        ("n.weight", "n.modules_to_save.default.weight"),
    ],
)
def test_keys_that_say_the_same_twice_are_refused(first: str, second: str) -> None:
    found = error_of({f"unet.{first}": torch.ones(2, 3), f"unet.{second}": torch.zeros(2, 3)})
    assert found == f"the state dict: {second} repeats what another key says."


WHERE = Path("adapter_config.json")
PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 8, "lora_alpha": 4}


@pytest.mark.parametrize(
    ("fields", "name", "rank", "alpha"),
    [
        ({}, "a.to_q", 8, 4.0),
        ({"r": 8.0, "lora_alpha": -3.4e38}, "a.to_q", 8, -3.4e38),
        ({"use_rslora": True}, "a.to_q", 8, 4 * math.sqrt(8)),
        ({"rank_pattern": {"to_q": 2}, "alpha_pattern": {"a.to_.": 6}}, "a.to_q", 2, 6.0),
        ({"rank_pattern": {"to_q": 2}}, "a.not_to_q", 8, 4.0),
        ({"alpha_pattern": {"^to_q": 2}}, "to_q", 8, 2.0),
        ({"alpha_pattern": {"to_q": 1, "a.to_q": 2}}, "a.to_q", 8, 1.0),
        ({"lora_dropout": 0.1, "target_modules": "all-linear", "init_lora_weights": "gaussian"}, "x", 8, 4.0),
        ({"init_lora_weights": True, "bias": "all", "lora_bias": True, "some_new_field": None}, "x", 8, 4.0),
    ],
)
def test_alpha_of_a_layer(fields: dict[str, Any], name: str, rank: int, alpha: float) -> None:
    assert config_of(PLAIN | fields, WHERE).alpha_of(ModuleName(name), rank, WHERE) == alpha


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "OFT"}, "of PEFT's type OFT. LORA, LOHA, LOKR are read. For another one, fuse it into"),
        ({"r": "8"}, "has r '8'. It must be a whole number above 0."),
        ({"r": 0}, "has r 0. It"),
        ({"r": True}, "has r True. It"),
        ({"r": 10**39}, "has r 1000"),
        ({"rank_pattern": {"a": 0}}, "has rank_pattern of a 0. It must be a whole number above 0."),
        ({"rank_pattern": [1]}, "has rank_pattern [1]. It must be an object of patterns."),
        ({"lora_alpha": 1e39}, "has lora_alpha 1e+39. It must be a number up to 3.4e38."),
        ({"lora_alpha": 10**400}, f"has lora_alpha 1{'0' * 59}. It"),
        ({"lora_alpha": float("nan")}, "has lora_alpha nan. It"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights pissa_niter_16 changed the base"),
        ({"fan_in_fan_out": True}, "the config uses unsupported settings: fan_in_fan_out true"),
        ({"use_qalora": True, "trainable_token_indices": [3]}, "use_qalora true, trainable_token_indices [3]"),
        ({"some_new_field": 1}, "some_new_field 1"),
        ({"rank_pattern": {"(": 1}}, "rank_pattern of the LoRA's config has the pattern ("),
        ({"rank_pattern": {"(?R)": 1}}, "rank_pattern of the LoRA's config has the pattern (?R): unknown extension ?R"),
        ({"alpha_pattern": {"(?:a.*){e<=9}": 1}}, "has the pattern (?:a.*){e<=9}: a brace after which no number of"),
    ],
)
def test_what_changes_the_factors_meaning_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError) as error:
        config_of(PLAIN | fields, WHERE)
    assert message in str(error.value)
