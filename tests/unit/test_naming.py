"""Names taken apart and put together, and the three kinds of patterns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbm_lora.errors import PatternError
from lbm_lora.naming import ModuleName, ParamName, bias_of, leaf_of, left_out, matcher, module_of, select, weight_of

MODULES = [
    "conv_in",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q",
    "mid_block.attentions.0.proj_in",
    "mid_block.attentions.0.proj_out",
    "mid_block.resnets.0.norm1",
]
PARAMS = [f"{module}.{leaf}" for module in MODULES for leaf in ("weight", "bias")] + ["num_iterations"]


@given(st.lists(st.from_regex(r"[a-z0-9_]+", fullmatch=True), max_size=5).map(".".join))
def test_weight_and_bias_belong_to_their_module(module: str) -> None:
    for name, leaf in ((weight_of(ModuleName(module)), "weight"), (bias_of(ModuleName(module)), "bias")):
        assert module_of(name) == module
        assert leaf_of(name) == leaf
        assert not name.startswith(".")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("attn1", [1]),
        ("attn", [1, 2]),
        ("conv_in", [0]),
        ("mid_block.*.proj_in", [3]),
        ("*.proj_???", [4]),
        ("*.attn[12].to_q", [1, 2]),
        ("*", [0, 1, 2, 3, 4, 5]),
        ("re:proj_(in|out)$", [3, 4]),
        ("re:^mid", [3, 4, 5]),
        ("denoiser.conv_in", [0]),
        ("denoiser.*", [0, 1, 2, 3, 4, 5]),
        ("re:^denoiser\\.mid", [3, 4, 5]),
    ],
)
def test_patterns_on_module_names(pattern: str, expected: list[int]) -> None:
    assert select(MODULES, [pattern], prefix="denoiser.") == {MODULES[index] for index in expected}


@pytest.mark.parametrize(
    "pattern", ["mid_block.*.proj_in", "re:proj_in$", "denoiser.mid_block.attentions.0.proj_in", "*.proj_in"]
)
def test_a_pattern_of_a_module_takes_all_its_params(pattern: str) -> None:
    chosen = select(PARAMS, [pattern], prefix="denoiser.", params=True)
    assert chosen == {"mid_block.attentions.0.proj_in.weight", "mid_block.attentions.0.proj_in.bias"}


@pytest.mark.parametrize("pattern", ["   ", "re:"])
def test_an_empty_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(PatternError) as caught:
        matcher(pattern)
    assert str(caught.value) == "an empty pattern selects nothing. Give part of a name, a glob, or re:REGEX."


def test_a_malformed_regular_expression_is_refused() -> None:
    with pytest.raises(PatternError) as caught:
        select(MODULES, ["re:proj_(in"])
    assert str(caught.value) == (
        "pattern 're:proj_(in': the regular expression does not compile: missing ) at position 8."
    )


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        ("atn1", " Nearest: attn1, attn2."),
        ("mid_block.*.proj_inn", " Nearest: proj_in, proj_out, conv_in."),
        ("qqqqqq", ""),
    ],
)
def test_no_match_names_the_nearest(pattern: str, nearest: str) -> None:
    with pytest.raises(PatternError) as caught:
        select(MODULES, ["conv_in", pattern])
    assert str(caught.value) == f"pattern '{pattern}' matches none of 6 names.{nearest} `lbm-lora layers` lists them."


def test_an_expression_that_backtracks_is_refused_in_time() -> None:
    with pytest.raises(PatternError, match=r"takes more than 1 s for one name\. Nested repetitions"):
        matcher("re:(a|aa)+$")("a" * 60 + "b")


def test_what_is_left_out_has_a_reason_and_exclude_wins() -> None:
    names = [ParamName(name) for name in ("a.weight", "a.bias", "b.weight")]
    found = left_out(names, include=["a"], exclude=["denoiser.a.bias"], prefix="denoiser.")
    assert found == {"a.bias": "in --exclude", "b.weight": "not in --include"}
    assert left_out(names, include=[], exclude=[], prefix="") == {}
