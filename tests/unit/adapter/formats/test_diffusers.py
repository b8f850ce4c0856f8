"""LoRAs of diffusers, and layers of one rank."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lbm_lora.adapter import FORMAT, Adapter, AdapterMetadata, LoraModule, Wishes, load_adapter, save_adapter
from lbm_lora.adapter.formats.layers import KEY, Before, as_before, to_one_rank
from lbm_lora.errors import AdapterError
from lbm_lora.naming import ModuleName, ParamName

seeded = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
TO_Q, CONV = ModuleName("mid_block.attentions.0.attn1.to_q"), ModuleName("conv_out")


def lora(dtype: torch.dtype = torch.float32, alpha: float = 2.0, biases: bool = False, norms: bool = False) -> Adapter:
    """A linear of rank 2 and a conv of rank 1, with the deltas that are asked for."""
    torch.manual_seed(0)
    modules = {
        TO_Q: LoraModule(TO_Q, torch.randn(2, 3).to(dtype), torch.randn(5, 2).to(dtype), alpha),
        CONV: LoraModule(CONV, torch.randn(1, 3, 3, 3).to(dtype), torch.randn(4, 1, 1, 1).to(dtype), 1.0),
    }
    dense = {ParamName("conv_out.bias"): torch.randn(4).to(dtype)} if biases else {}
    dense |= {ParamName("mid.norm1.weight"): torch.randn(3).to(dtype)} if norms else {}
    return Adapter(modules, dense, AdapterMetadata(FORMAT, "d" * 32), "denoiser.")


def read(tensors: dict[str, Tensor], header: dict[str, Any] | None = None, *, path: Path, **options: Any) -> Adapter:
    own = {key: tensor.clone() for key, tensor in tensors.items()}
    save_file(own, path / "x.safetensors", header and {"lora_adapter_metadata": json.dumps(header)})
    return load_adapter(path / "x.safetensors", **options)


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


def test_keys_one_rank_and_a_header_that_says_the_same(tmp_path: Path) -> None:
    saved = save_adapter(lora(), tmp_path / "x.safetensors", format="diffusers")
    tensors = load_file(saved.path)
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == {
        f"unet.{CONV}.lora_A.weight": (2, 3, 3, 3),
        f"unet.{CONV}.lora_B.weight": (4, 2, 1, 1),
        f"unet.{TO_Q}.lora_A.weight": (2, 3),
        f"unet.{TO_Q}.lora_B.weight": (5, 2),
    }
    with safe_open(saved.path, "pt") as file:
        header = file.metadata()
    assert json.loads(header["lora_adapter_metadata"]) == {
        "unet.alpha_pattern": {},
        "unet.lora_alpha": 2,
        "unet.r": 2,
        "unet.rank_pattern": {},
        "unet.target_modules": [CONV, TO_Q],
    }
    assert header["lbm_lora_export"] == "diffusers 1"
    assert saved.notes == ("Zeros fill every module up to rank 2: 0.0 MB more.",)


@seeded
@given(
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.sampled_from([2.0, 1.0, 16.0, 3.0, 0.7]),
    st.booleans(),
)
def test_the_way_there_and_back_keeps_every_bit(tmp_path: Path, dtype: torch.dtype, alpha: float, biases: bool) -> None:
    given_lora = lora(dtype, alpha, biases)
    saved = save_adapter(given_lora, tmp_path / "x.safetensors", format="diffusers", wishes=Wishes("lora_bias"))
    found = load_adapter(saved.path)
    if any("last bits" in note for note in saved.notes):
        assert dtype == torch.float32
        torch.testing.assert_close(found.modules[TO_Q].delta(), given_lora.modules[TO_Q].delta())
    else:
        assert_same(found, given_lora)


def test_deltas_without_a_place_are_counted_and_named_with_the_ways_out() -> None:
    with pytest.raises(AdapterError) as error:
        save_adapter(lora(biases=True, norms=True), "x.safetensors", format="diffusers")
    assert str(error.value) == (
        "the LoRA: the format diffusers cannot hold 1 delta of a bias and 1 delta of a norm: conv_out.bias, "
        'mid.norm1.weight. Choose: biases="lora_bias" or "drop", norms="drop".'
    )


DOWN, UP = torch.randn(2, 3), torch.randn(5, 2)


@pytest.mark.parametrize(
    ("down", "up", "name"),
    [
        ("unet.a.to_q.lora_A.weight", "unet.a.to_q.lora_B.weight", "a.to_q"),
        ("a.to_q.lora_A.weight", "a.to_q.lora_B.weight", "a.to_q"),
        ("unet.a.to_q.lora.down.weight", "unet.a.to_q.lora.up.weight", "a.to_q"),
        ("unet.a.lora_linear_layer.down.weight", "unet.a.lora_linear_layer.up.weight", "a"),
        ("unet.attn1.processor.to_q_lora.down.weight", "unet.attn1.processor.to_q_lora.up.weight", "attn1.to_q"),
        ("attn1.processor.to_out_lora.down.weight", "attn1.processor.to_out_lora.up.weight", "attn1.to_out.0"),
    ],
)
def test_keys_of_every_age_are_read(tmp_path: Path, down: str, up: str, name: str) -> None:
    found = read({down: DOWN, up: UP}, path=tmp_path)
    assert (found.file_format, found.prefix) == ("diffusers", "denoiser.")
    torch.testing.assert_close(found.modules[ModuleName(name)].delta(), UP @ DOWN)


FILE = {"unet.a.lora_A.weight": DOWN, "unet.a.lora_B.weight": UP}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"unet.a.lora_A.weight": DOWN}, r"a has no lora_B\. The file is incomplete"),
        (FILE | {"unet.a.lora_B.weight": UP[:, :1]}, "do not fit together"),
        (
            FILE | {"unet.b.weight": UP},
            r"holds 1 key besides factors: b\.weight\. .* with the base: base_model_path",
        ),
        ({"transformer.a.lora_A.weight": DOWN, "transformer.a.lora_B.weight": UP}, "a diffusion transformer"),
        ({"a.lora_A.x.weight": DOWN, "a.lora_B.y.weight": UP}, "holds 2 adapters: x, y"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        read(tensors, path=tmp_path)


DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
SHAPES = st.one_of(
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.tuples(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3]), st.sampled_from([1, 3])),
)
ALPHAS = st.sampled_from([None, 1.0, 2.0, 0.5, 3.0, 7.3, 0.1, 0.0])


def module(name: str, shape: tuple[int, ...], rank: int, alpha: float | None, dtype: torch.dtype) -> LoraModule:
    torch.manual_seed(len(name) + rank)
    kernel = shape[2:]
    up = torch.randn(shape[0], rank, *(1 for _ in kernel)).to(dtype)
    down = torch.randn(rank, *shape[1:]).to(dtype)
    return LoraModule(ModuleName(name), down, up, float(rank if alpha is None else alpha))


MODULES = st.lists(st.tuples(SHAPES, st.integers(1, 4), ALPHAS, DTYPES), min_size=1, max_size=5).map(
    lambda rows: {ModuleName(f"m{place}"): module(f"m{place}", *row) for place, row in enumerate(rows)}
)


def same(found: LoraModule, given: LoraModule) -> bool:
    return found.alpha == given.alpha and same_bits(found.up, given.up) and same_bits(found.down, given.down)


def same_bits(found: Tensor, given: Tensor) -> bool:
    return found.dtype == given.dtype and torch.equal(found, given)


@seeded
@given(MODULES)
def test_the_delta_stays_and_the_way_back_is_exact(modules: dict[ModuleName, LoraModule]) -> None:
    exported = to_one_rank(modules, {}, "denoiser.")
    for name, given_module in modules.items():
        found = exported.modules[name]
        assert found.alpha == found.rank
        torch.testing.assert_close(found.delta(), given_module.delta(), rtol=1e-6, atol=1e-6)
    if exported.padding is not None:
        assert len(set(exported.ranks.values())) == 1
        nbytes = [sum(m.up.nbytes + m.down.nbytes for m in part.values()) for part in (exported.modules, modules)]
        widened = sum(m.up.nbytes // 2 for name, m in exported.modules.items() if m.up.dtype != modules[name].up.dtype)
        assert widened or nbytes[0] == nbytes[1] + exported.padding
    before = Before.of_header({KEY: exported.before.encoded()})
    assert before is not None
    assert before == exported.before
    back, dense = as_before(exported.modules, before)
    assert dense == {}
    lossy = {name for name, alpha in zip(sorted(modules), before.alphas, strict=True) if alpha is None}
    assert all(same(back[name], modules[name]) for name in modules if name not in lossy)
    assert all(back[name].rank == modules[name].rank for name in modules)
    # only a scaling of zero, or one that rounds fp32 itself, cannot be undone
    assert all(modules[name].alpha == 0 or modules[name].up.dtype == torch.float32 for name in lossy)


def test_what_was_changed_since_then_stays_as_it_is() -> None:
    ranks = {ModuleName(n): module(n, (4, 3), rank, 4.0, torch.float32) for n, rank in (("a", 1), ("b", 2), ("c", 2))}
    exported = to_one_rank(ranks, {}, "")
    changed = {
        name: replace(m, up=m.up + 1) if name == "a" else replace(m, alpha=5.0) if name == "b" else m
        for name, m in exported.modules.items()
    }
    found, _ = as_before(changed, exported.before)
    assert [same(found[name], changed[name]) for name in found] == [True, True, False]
    fewer = {name: changed[name] for name in list(changed)[1:]}
    assert as_before(fewer, exported.before) == (fewer, {})


@pytest.mark.parametrize(
    "value",
    [None, "x", "[]", "{}", json.dumps({"prefix": "", "ranks": [1], "alphas": [], "matrices": []}),
     json.dumps({"prefix": "", "ranks": ["a"], "alphas": [1], "matrices": []}),
     json.dumps({"prefix": "", "ranks": [1], "alphas": [0], "matrices": []}),
     json.dumps({"prefix": "", "ranks": [1], "alphas": ["a"], "matrices": []}),
     json.dumps({"prefix": "", "ranks": [1], "alphas": [1], "matrices": [], "replaced": []})],
)  # fmt: skip
def test_an_entry_that_is_not_ours_is_none(value: str | None) -> None:
    assert Before.of_header({} if value is None else {KEY: value}) is None
