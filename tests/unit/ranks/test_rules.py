"""Which rule the options of ranks ask for, what is said of those that cannot be, and sizes in words."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lbm_lora.errors import ConfigError
from lbm_lora.factorize import FixedRank
from lbm_lora.naming import ParamName
from lbm_lora.ranks import FixedRanks, RankOptions, RankRule, rank_rule
from lbm_lora.ranks.rules import EnergyShare, ErrorLimit, ModuleErrorLimit, PsnrFloor, SizeLimits, parse_nbytes


def rule_of(*, is_calibrated: bool = False, has_images: bool = False, **options: object) -> RankRule:
    made = RankOptions(**options)  # pyright: ignore[reportArgumentType]
    return rank_rule(made, is_calibrated=is_calibrated, has_images=has_images)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({}, FixedRanks(ranks=(FixedRank(linear=32, conv=16),))),
        ({"rank": 16}, FixedRanks(ranks=(FixedRank(linear=16, conv=8),))),
        ({"rank": 8, "conv_rank": 8}, FixedRanks(ranks=(FixedRank(linear=8, conv=8),))),
        ({"max_size": ("200MB", "1 kB")}, SizeLimits(nbytes=(200_000_000, 1000), words=("200MB", "1 kB"))),
        ({"max_error": 0.3}, ErrorLimit(option="max_error", value=0.3)),
        ({"max_output_error": 1.5, "is_calibrated": True}, ErrorLimit(option="max_output_error", value=1.5)),
        ({"min_psnr": 40.0, "has_images": True}, PsnrFloor(option="min_psnr", value=40.0)),
        ({"keep_energy": 1.0}, EnergyShare(option="keep_energy", value=1.0)),
        ({"max_module_error": 0.2}, ModuleErrorLimit(option="max_module_error", value=0.2)),
    ],
)
def test_each_option_asks_for_its_rule(options: dict[str, object], rule: RankRule) -> None:
    found = rule_of(**options)  # pyright: ignore[reportArgumentType]
    assert type(found) is type(rule)  # limits of one option and value are equal whatever their rule
    assert found == rule


SHARE = "must be above 0 and at most"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ranks": (4,), "max_error": 0.1}, "ranks and max_error both choose the ranks. Give one of them."),
        ({"ranks": (4, 8, 4)}, "r4 r8 r4: give each rank or size only once."),
        ({"max_size": ("1MB", "1mb")}, "1MB 1mb: give each rank or size only once."),
        ({"max_size": ("huge",)}, "max_size must be a file size such as 200MB or 1.5GB, got huge."),
        ({"max_error": 0.0}, f"max_error {SHARE} 1 (0.05 is 5 %), got 0."),
        ({"max_error": float("nan")}, f"max_error {SHARE} 1 (0.05 is 5 %), got nan."),
        ({"min_psnr": float("nan"), "has_images": True}, "min_psnr must be above 0 dB and finite, got nan."),
        (
            {"max_output_error": 11.0, "is_calibrated": True},
            f"max_output_error {SHARE} 10 (0.05 is 5 %), got 11.",
        ),
        (
            {"max_output_error": 0.1},
            "max_output_error needs the denoiser's output: add calibration_images.",
        ),
        (
            {"max_error": 0.1, "is_calibrated": True},
            "max_error limits the weight error, but calibration measures the output: use max_output_error.",
        ),
        (
            {"min_psnr": 40.0, "is_calibrated": True},
            "min_psnr needs images: add calibration_images, or calibration and images.",
        ),
    ],
)
def test_what_cannot_be_is_said(options: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rule_of(**options)  # pyright: ignore[reportArgumentType]
    assert str(caught.value) == text


@given(
    number=st.integers(1, 10**6),
    unit=st.sampled_from([("k", 1), ("M", 2), ("G", 3)]),
    end=st.sampled_from(["", "B", "b", "iB", "ib", "I"]),
    space=st.sampled_from(["", " "]),
)
def test_a_unit_is_a_power_of_1000_and_one_with_i_of_1024(
    number: int, unit: tuple[str, int], end: str, space: str
) -> None:
    letter, power = unit
    base = 1024 if "i" in end.lower() else 1000
    for text in (letter, letter.lower(), letter.upper()):
        assert parse_nbytes(f"{number}{space}{text}{end}") == number * base**power


@pytest.mark.parametrize(
    "text", ["", "MB", "0MB", "0.0", "0.4", "-1MB", "1e6", ".5GB", "1,5GB", "1TB", "1 M B", "1MBs", "5iB"]
)
def test_what_is_no_size_is_said(text: str) -> None:
    with pytest.raises(
        ConfigError, match=f"^{re.escape(f'max_size must be a file size such as 200MB or 1.5GB, got {text}.')}$"
    ):
        parse_nbytes(text)


@pytest.mark.parametrize("number", ["200", "1.5", "9999"])
def test_a_small_number_without_a_unit_is_asked_back(number: str) -> None:
    text = f"max_size {number}: {number} of what? Give a unit: {number}MB or {number}KB."
    with pytest.raises(ConfigError, match=f"^{re.escape(text)}$"):
        rule_of(max_size=(number,))


TWO = (FixedRank(linear=16, conv=8), FixedRank(linear=64, conv=2))


@pytest.mark.parametrize(
    ("rule", "names", "facts"),
    [
        (FixedRanks(ranks=TWO[:1]), ("",), {"rank_policy": "fixed", "rank": 16, "conv_rank": 8}),
        (FixedRanks(ranks=TWO, is_named=True), ("r16", "r64"), {"rank_policy": "fixed", "rank": 64, "conv_rank": 2}),
        (SizeLimits(nbytes=(1,), words=("200 MB",)), ("",), {"rank_policy": "max_size", "max_size": "200 MB"}),
        (
            SizeLimits(nbytes=(1, 2), words=("200 MB", "1.5GB")),
            ("200MB", "1.5GB"),
            {"rank_policy": "max_size", "max_size": "1.5GB"},
        ),
        (ErrorLimit(option="max_error", value=0.3), ("",), {"rank_policy": "max_error", "max_error": 0.3}),
    ],
)
def test_a_rule_names_its_adapters_and_says_what_was_asked_for(
    rule: RankRule, names: tuple[str, ...], facts: dict[str, object]
) -> None:
    assert rule.names == names
    assert rule.facts(len(names) - 1) == facts


SHAPES = {
    ParamName("large.weight"): (400, 420),
    ParamName("middle.weight"): (200, 210),
    ParamName("small.weight"): (192, 300),
    ParamName("conv.weight"): (8, 4, 3, 3),
}
PER_RANK = 2 * (400 + 420 + 200 + 210 + 192 + 300 + 8 + 4 * 9)
"""Bytes that one more rank of every matrix takes in bf16."""


@pytest.mark.parametrize(
    ("rule", "caps"),
    [
        (FixedRanks(ranks=TWO), (64, 64, 64, 8)),
        (ErrorLimit(option="max_error", value=0.5), (100, 64, 192, 8)),
        (ModuleErrorLimit(option="max_module_error", value=0.5), (400, 200, 192, 8)),
        (SizeLimits(nbytes=(PER_RANK, 30 * PER_RANK), words=("", "")), (120, 120, 192, 8)),
    ],
)
def test_no_more_ranks_are_surveyed_than_a_rule_may_need(rule: RankRule, caps: tuple[int, ...]) -> None:
    assert tuple(rule.caps(SHAPES, torch.bfloat16).values()) == caps
