"""Which rule the options of ranks ask for, what is said of those that cannot be, and sizes in words."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbm_lora.configs.rank_options import RankOptions
from lbm_lora.errors import ConfigError
from lbm_lora.factorize import FULL_RANK, FixedRank
from lbm_lora.ranks import FixedRanks, RankRule, rank_rule
from lbm_lora.ranks.rank_options import parse_nbytes
from lbm_lora.ranks.rules import EnergyShare, ErrorLimit, ModuleErrorLimit, PsnrFloor, SizeLimits


def rule_of(*, is_calibrated: bool = False, has_images: bool = False, **options: object) -> RankRule:
    made = RankOptions(**options)  # pyright: ignore[reportArgumentType]
    return rank_rule(made, is_calibrated=is_calibrated, has_images=has_images)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({}, FixedRanks(ranks=(FixedRank(linear=32, conv=16),))),
        ({"rank": 16}, FixedRanks(ranks=(FixedRank(linear=16, conv=8),))),
        ({"rank": 9999}, FixedRanks(ranks=(FixedRank(linear=9999, conv=9999),))),
        ({"rank": 8, "conv_rank": 8}, FixedRanks(ranks=(FixedRank(linear=8, conv=8),))),
        ({"max_size": ("200MB", "1 kB")}, SizeLimits(nbytes=(200_000_000, 1000), words=("200MB", "1 kB"))),
        ({"max_error": 0.3}, ErrorLimit(option="max_error", value=0.3)),
        ({"max_output_error": 1.5, "is_calibrated": True}, ErrorLimit(option="max_output_error", value=1.5)),
        ({"min_psnr": 40.0, "has_images": True}, PsnrFloor(option="min_psnr", value=40.0)),
        ({"keep_energy": 1.0}, EnergyShare(option="keep_energy", value=1.0)),
        ({"max_module_error": 0.2}, ModuleErrorLimit(option="max_module_error", value=0.2)),
        ({"max_module_error": 0.2, "is_calibrated": True}, ModuleErrorLimit(option="max_module_error", value=0.2)),
    ],
)
def test_each_option_asks_for_its_rule(options: dict[str, object], rule: RankRule) -> None:
    found = rule_of(**options)  # pyright: ignore[reportArgumentType]
    assert type(found) is type(rule)  # limits of one option and value are equal whatever their rule
    assert found == rule


@pytest.mark.parametrize(
    ("conv_rank", "pairs"),
    [(None, {16: 8, 64: 32, 3: 2, 1: 1, FULL_RANK: FULL_RANK}), (16, {16: 16, 64: 16, FULL_RANK: 16})],
)
def test_of_several_ranks_each_has_half_of_it_for_convs_or_what_is_given(
    conv_rank: int | None, pairs: dict[int, int]
) -> None:
    found = rule_of(conv_rank=conv_rank, ranks=tuple(pairs))
    wanted = tuple(FixedRank(linear=linear, conv=conv) for linear, conv in pairs.items())
    assert found == FixedRanks(ranks=wanted, is_named=True)


SHARE = "must be above 0 and at most"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ranks": (4,), "max_error": 0.1}, "ranks and max_error both choose the ranks. Give one of them."),
        (
            {"max_size": ("1MB",), "min_psnr": 40.0, "keep_energy": 0.9},
            "max_size and min_psnr both choose the ranks. Give one of them.",
        ),
        ({"ranks": (4, 8, 4)}, "r4 r8 r4: give each rank or size only once."),
        ({"max_size": ("1MB", "1 MB")}, "1MB 1MB: give each rank or size only once."),
        ({"max_size": ("1MB", "1mb")}, "1MB 1mb: give each rank or size only once."),
        ({"max_size": ("huge",)}, "max_size must be a file size such as 200MB or 1.5GB, got huge."),
        ({"max_error": 0.0}, f"max_error {SHARE} 1 (0.05 is 5 %), got 0."),
        ({"keep_energy": 1.5}, f"keep_energy {SHARE} 1 (0.05 is 5 %), got 1.5."),
        ({"max_module_error": -0.1}, f"max_module_error {SHARE} 1 (0.05 is 5 %), got -0.1."),
        ({"max_error": float("nan")}, f"max_error {SHARE} 1 (0.05 is 5 %), got nan."),
        ({"min_psnr": float("nan"), "has_images": True}, "min_psnr must be above 0 dB and finite, got nan."),
        ({"min_psnr": -1.0, "has_images": True}, "min_psnr must be above 0 dB and finite, got -1."),
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
    ("text", "nbytes"),
    [("1.5 GB", 1_500_000_000), ("0.25MB", 250_000), (" 7b ", 7), ("1.001kB", 1001), ("10000", 10_000)],
)
def test_a_size_may_have_decimals_and_spaces(text: str, nbytes: int) -> None:
    assert parse_nbytes(text) == nbytes


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


@pytest.mark.parametrize(
    ("options", "one", "other"),
    [
        ({"rank": 16, "max_size": ("200MB",)}, "rank", "max_size"),
        ({"rank": 16, "ranks": (4, 8)}, "rank", "ranks"),
        ({"conv_rank": 8, "max_error": 0.3}, "conv_rank", "max_error"),
    ],
)
def test_a_rank_that_another_rule_would_ignore_is_refused(options: dict[str, Any], one: str, other: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rule_of(**options)
    assert str(caught.value) == f"{one} and {other} both choose the ranks. Give one of them."
