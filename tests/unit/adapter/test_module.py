"""Lora modules and adapters as values, what they record, and the scale that a user writes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lbm_lora.adapter import (
    Adapter,
    AdapterBuilder,
    AdapterMetadata,
    Ledger,
    LedgerRow,
    LoraModule,
    LoraScale,
    Status,
    common_dtype,
)
from lbm_lora.adapter.limit import limited
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import ConfigError
from lbm_lora.factorize import Measure
from lbm_lora.naming import ModuleName, ParamName

Rand = Callable[..., Tensor]


def module(name: str, down: Tensor, up: Tensor, alpha: float) -> LoraModule:
    return LoraModule(ModuleName(name), down, up, alpha)


@pytest.fixture
def adapter(rand: Rand) -> Adapter:
    modules = [
        module("a", rand(2, 6), rand(4, 2), 2.0),
        module("b.conv", rand(3, 5, 3, 3), rand(7, 3, 1, 1), 6.0),
    ]
    dense = {ParamName("a.bias"): rand(4), ParamName("norm.weight"): rand(5), ParamName("scale"): rand()}
    return Adapter({one.name: one for one in modules}, dense, prefix="denoiser.", path=Path("x.safetensors"))


@pytest.mark.parametrize(("alpha", "scaling"), [(2.0, 1.0), (1.0, 0.5), (32.0, 16.0), (0.0, 0.0), (-2.0, -1.0)])
def test_scaling_is_alpha_over_rank(rand: Rand, alpha: float, scaling: float) -> None:
    one = module("a", rand(2, 6), rand(4, 2), alpha)
    assert (one.rank, one.scaling, one.shape) == (2, scaling, (4, 6))
    torch.testing.assert_close(one.delta(), scaling * (one.up @ one.down))


def test_the_delta_of_a_conv_has_its_shape(rand: Rand) -> None:
    one = module("a", rand(3, 5, 3, 2), rand(7, 3, 1, 1), 6.0)
    assert (one.rank, one.scaling, one.shape) == (3, 2.0, (7, 5, 3, 2))
    expected = 2 * torch.einsum("or,rikl->oikl", one.up[:, :, 0, 0].double(), one.down.double())
    torch.testing.assert_close(one.delta().double(), expected, rtol=1e-5, atol=1e-5)


def test_every_param_that_an_adapter_changes(adapter: Adapter) -> None:
    assert adapter.params == ["a.weight", "b.conv.weight", "a.bias", "norm.weight", "scale"]
    shapes = {"a.weight": (4, 6), "b.conv.weight": (7, 5, 3, 3), "a.bias": (4,), "norm.weight": (5,), "scale": ()}
    for name in map(ParamName, shapes):
        assert adapter.shape_of(name) == shapes[name]
        delta = adapter.delta(name)
        assert delta is not None
        assert (tuple(delta.shape), delta.dtype) == (shapes[name], torch.float32)


def test_an_adapter_says_what_it_is(adapter: Adapter) -> None:
    assert len(adapter) == 5
    tensors = 4 * (2 * 6 + 4 * 2 + 3 * 5 * 9 + 7 * 3 + 2 + 4 + 5 + 1)  # two alphas, three dense deltas
    assert adapter.nbytes == tensors
    assert repr(adapter) == "<Adapter x.safetensors: 2 lora modules of rank 2 to 3, 3 dense deltas, fp32, 0.0 MB>"
    one = Adapter({}, {ParamName("a.bias"): torch.zeros(3_000_000, dtype=torch.bfloat16)})
    assert repr(one) == "<Adapter: 0 lora modules, 1 dense delta, bf16, 6.0 MB>"
    assert repr(Adapter({}, {})) == "<Adapter: 0 lora modules, 0 dense deltas, empty, 0.0 MB>"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_the_bytes_of_an_adapter_are_those_of_its_file_without_the_header(
    adapter: Adapter, tmp_path: Path, dtype: torch.dtype
) -> None:
    cast = adapter.cast(dtype)
    path = cast.save(tmp_path / "l.safetensors")
    with open_checkpoint(path) as file:
        assert cast.nbytes == sum(spec.nbytes for spec in file.specs.values())


def test_save_replaces_what_is_there_and_what_was_read_stays(adapter: Adapter, tmp_path: Path) -> None:
    """As torch.save does, also the file that the adapter itself is read from."""
    path = tmp_path / "l.safetensors"
    path.write_text("theirs")
    adapter.save(path)
    read = Adapter.load(path)
    adapter.cast(torch.bfloat16).save(path)
    assert all(torch.equal(*pair) for pair in deltas(adapter, read))


def test_a_path_may_begin_with_the_home_folder(
    adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert adapter.save("~/l.safetensors") == tmp_path / "l.safetensors"
    assert Adapter.load("~/l.safetensors").params == adapter.params


def deltas(*adapters: Adapter) -> list[tuple[Tensor, ...]]:
    """The deltas of each parameter."""
    found = [[adapter.delta(name) for adapter in adapters] for name in adapters[0].params]
    return [tuple(one for one in row if one is not None) for row in found]


@dataclass(frozen=True, eq=False, repr=False)
class Measured(Adapter):
    """An adapter with a number that was measured on it."""

    error: float = 0.5


def test_what_was_measured_on_an_adapter_is_not_said_of_a_part_of_it(adapter: Adapter) -> None:
    measured = Measured(adapter.modules, adapter.dense, adapter.metadata, "denoiser.", Path("x.safetensors"))
    assert repr(measured).startswith("<Measured x.safetensors: ")
    for other in (measured.cast(torch.bfloat16), measured.filtered(lambda _: True)):
        assert type(other) is Adapter
        assert (other.prefix, other.path) == ("denoiser.", Path("x.safetensors"))


def test_the_common_dtype_is_that_of_all_factors_or_fp32(adapter: Adapter) -> None:
    half, eight = adapter.cast(torch.bfloat16), adapter.cast(torch.int8)
    assert common_dtype([half, half]) == torch.bfloat16
    assert common_dtype([half, adapter.cast(torch.float16)]) == torch.float32
    assert common_dtype([eight]) == torch.int8
    assert common_dtype([eight, half]) == torch.float32
    assert common_dtype([half.filtered(lambda name: name.endswith("bias"))]) == torch.bfloat16


def test_what_was_added_is_in_the_adapter_with_the_last_metadata() -> None:
    builder = AdapterBuilder("denoiser.", torch.bfloat16, AdapterMetadata(facts={"room": "000"}))
    one = LoraModule(ModuleName("a"), torch.ones(2, 6), torch.ones(4, 2), 2.0)
    builder.add_module(one)
    before = builder.adapter()
    builder.add_dense(ParamName("a.bias"), torch.ones(4))
    builder.metadata = AdapterMetadata(format="1")
    adapter = builder.adapter()
    assert (before.params, before.metadata.facts) == (["a.weight"], {"room": "000"})
    assert adapter.params == ["a.weight", "a.bias"]
    assert adapter.modules["a"] is one  # pyright: ignore[reportArgumentType]
    assert (adapter.prefix, adapter.path, adapter.metadata, adapter.dtype) == (
        "denoiser.",
        None,
        AdapterMetadata(format="1"),
        None,
    )


def test_an_adapter_in_eight_bits_knows_that_it_is_one() -> None:
    assert AdapterBuilder("", torch.int8, AdapterMetadata()).adapter().dtype == torch.int8


def row(name: str, status: Status, reason: str, delta_sq: float, error_sq: float) -> LedgerRow:
    measure = Measure(numel=1, delta_sq=delta_sq, error_sq=error_sq)
    return LedgerRow(ParamName(name), status, reason, (1,), None, measure)


LEDGER = Ledger(
    (
        row("a", Status.LORA, "linear", 4.0, 1.0),
        row("b", Status.EXCLUDED, "in --exclude", 9.0, 9.0),
        row("c", Status.DENSE, "1-dimensional", 1.0, 0.0),
        row("d", Status.UNCHANGED, "equal in base and tuned", 0.0, 0.0),
        row("e", Status.EXCLUDED, "in --exclude", 2.0, 2.0),
        row("f", Status.EXCLUDED, "not a floating point tensor", 0.0, 0.0),
    )
)


def test_counts_add_up_and_name_every_status() -> None:
    assert LEDGER.counts() == {"lora": 1, "dense": 1, "unchanged": 1, "excluded": 3}
    assert sum(LEDGER.counts().values()) == len(LEDGER) == len(list(LEDGER))
    assert Ledger(()).counts() == {"lora": 0, "dense": 0, "unchanged": 0, "excluded": 0}


def test_the_highest_ranks_are_those_of_stored_linear_and_conv_layers() -> None:
    shapes = {"a": ((4, 6), 3), "b": ((4, 6), 5), "c": ((4, 6, 3, 3), 2)}
    rows = [
        LedgerRow(ParamName(name), Status.LORA, "", shape, rank, Measure()) for name, (shape, rank) in shapes.items()
    ]
    assert Ledger(tuple(rows)).highest_ranks() == (5, 2)
    assert LEDGER.of(Status.EXCLUDED)
    assert Ledger(tuple(LEDGER.of(Status.EXCLUDED))).highest_ranks() == (0, 0)


FACTS = st.dictionaries(st.text().filter(lambda key: not key.startswith("lbm_lora_")), st.text())


@given(st.builds(AdapterMetadata, st.text(), st.text(), st.text(), st.text(), FACTS))
def test_to_a_header_and_back(metadata: AdapterMetadata) -> None:
    assert AdapterMetadata.from_header(metadata.to_header()) == metadata


@pytest.mark.parametrize(
    ("facts", "is_made"),
    [
        ({}, False),
        ({"lbm_lora_settings": '{"method":"plain"}'}, False),
        ({"lbm_lora_settings": '{"method":"calibrated"}'}, True),
        ({"lbm_lora_settings": '{"method":"plain"}', "lbm_lora_refinement": "{}"}, True),
    ],
)
def test_a_calibrated_or_refined_file_is_made_for_the_output(facts: dict[str, str], is_made: bool) -> None:
    assert AdapterMetadata(facts=facts).is_made_for_output is is_made


NAMES = [
    ParamName("down_blocks.0.attn1.to_q.weight"),
    ParamName("down_blocks.0.norm.bias"),
    ParamName("conv_in.weight"),
]


@pytest.mark.parametrize(
    ("text", "scales"),
    [
        ("0.8", [0.8, 0.8, 0.8]),
        (-2.0, [-2, -2, -2]),
        ("0.8,down_blocks=0.5,attn1=0", [0, 0.5, 0.8]),
        ("down_blocks=0.5", [0.5, 0.5, 1]),
        ("1, denoiser.conv_in=2", [1, 1, 2]),
        ("attn1=0,down_blocks=0.5", [0.5, 0.5, 1]),
    ],
)
def test_the_last_pattern_that_matches_counts(text: str | float, scales: list[float]) -> None:
    assert list(LoraScale.parse(text).by_param(NAMES).values()) == scales


def test_its_text_is_what_a_user_writes() -> None:
    scale = LoraScale.parse("0.80,attn1=0.0")
    assert scale.text == "0.8,attn1=0"
    assert LoraScale.parse(scale.text) == scale


@pytest.mark.parametrize("text", ["x", "1,attn1", "attn1=", "1,=2", "", "nan", "1,attn1=inf", "1,2"])
def test_what_is_not_a_scale_is_said(text: str) -> None:
    with pytest.raises(ConfigError, match="lora_scale"):
        LoraScale.parse(text)


LINEAR, CONV, DENSE = ModuleName("a.linear"), ModuleName("a.conv"), ParamName("a.dense.weight")
BIAS = ParamName("a.linear.bias")


@pytest.fixture
def ranked(rand: Callable[..., Tensor]) -> Adapter:
    """Factors of rank 2 and 6, a dense matrix and a bias."""
    return Adapter(
        {
            LINEAR: LoraModule(LINEAR, rand(2, 8), rand(10, 2), 1.0),
            CONV: LoraModule(CONV, rand(6, 4, 3, 3), rand(12, 6, 1, 1), 3.0),
        },
        {DENSE: rand(9, 7), BIAS: rand(10)},
        AdapterMetadata("1", "base", facts={"lbm_lora_errors": "{}", "note": "kept"}),
        "denoiser.",
    )


def test_what_exceeds_the_rank_is_the_truncated_svd_and_the_rest_is_untouched(ranked: Adapter) -> None:
    found = limited(ranked, 3)
    assert found.reduced == (ParamName("a.conv.weight"), DENSE)
    assert found.adapter.modules[LINEAR] is ranked.modules[LINEAR]
    assert found.adapter.dense == {BIAS: ranked.dense[BIAS]}
    errors, norms = [], []
    for name in ranked.params:
        before, after = ranked.delta(name), found.adapter.delta(name)
        assert before is not None
        assert after is not None
        assert after.shape == before.shape
        errors.append(float((after - before).square().sum()))
        norms.append(float(before.square().sum()))
        if name in found.reduced:
            dropped = torch.linalg.svdvals(before.flatten(1))[3:].square().sum()
            assert errors[-1] == pytest.approx(float(dropped), rel=1e-4)
    assert found.relative_error == pytest.approx((sum(errors) / sum(norms)) ** 0.5, rel=1e-5)
    assert [found.adapter.modules[name].rank for name in (LINEAR, CONV, ModuleName("a.dense"))] == [2, 3, 3]


def test_a_rank_that_nothing_exceeds_but_dense_matrices_keeps_them_exact(ranked: Adapter) -> None:
    found = limited(ranked, 7)
    assert found.reduced == (DENSE,)
    assert found.relative_error == pytest.approx(0, abs=1e-6)
    assert torch.equal(found.adapter.modules[ModuleName("a.dense")].delta(), ranked.dense[DENSE])
