"""Which samples are held out, and errors at them as one value."""

from itertools import pairwise

import pytest
import torch

from lbm_lora.fidelity.checks import Check, CheckKind, held_out, trial_errors


def test_one_in_four_is_held_out_up_to_sixteen() -> None:
    assert [len(held_out(count)) for count in (1, 3, 4, 7, 8, 16, 64, 65, 1000)] == [0, 0, 1, 1, 2, 4, 16, 16, 16]


@pytest.mark.parametrize("count", [4, 11, 64, 77, 1000])
def test_they_are_spread_evenly(count: int) -> None:
    held = held_out(count)
    gaps = [later - earlier for earlier, later in pairwise([*held, count + held[0]])]
    assert max(gaps) - min(gaps) <= 1
    assert 0 <= held[0] <= held[-1] < count


def check(kind: CheckKind) -> Check:
    return Check(kind=kind, wanted=torch.ones(2))


def test_each_kind_of_shift_has_its_own_error() -> None:
    checks = [check("held"), check("larger"), check("held"), check("content"), check("larger")]
    found = trial_errors(checks, [0.01, 0.5, 0.04, 0.7, 0.02])
    assert found is not None
    assert (found.typical, found.shifted) == (pytest.approx(0.02), pytest.approx({"content": 0.7, "larger": 0.1}))
    low, high = found.shifted_within["larger"]
    assert (low < 0.02, high > 0.5, low * high) == (True, True, pytest.approx(0.1**2))
    assert found.low < 0.01
    assert found.high > 0.04
    assert found.low * found.high == pytest.approx(0.02**2)
    alone = trial_errors([check("held")], [0.02])
    assert alone is not None
    assert (alone.typical / alone.low, alone.shifted) == (pytest.approx(10 ** (3 * 1.28 / 20)), {})
    assert trial_errors([check("content")], [0.5]) is None
