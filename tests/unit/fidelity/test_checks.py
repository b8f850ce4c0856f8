"""Which samples are held out, and errors at them as one value."""

import pytest
import torch

from lbm_lora.fidelity.checks import Check, CheckKind, held_out, trial_errors


def test_one_in_eight_is_held_out_and_one_of_four() -> None:
    assert [len(held_out(count)) for count in (1, 3, 4, 8, 16, 64)] == [0, 0, 1, 1, 2, 8]


def check(kind: CheckKind) -> Check:
    return Check(kind=kind, wanted=torch.ones(2))


def test_held_and_shifted_errors_are_separate() -> None:
    checks = [check("held"), check("shifted"), check("held")]
    found = trial_errors(checks, [0.01, 0.5, 0.04])
    assert found is not None
    assert (found.typical, found.shifted) == (pytest.approx(0.02), pytest.approx(0.5))
    assert found.low < 0.01
    assert found.high > 0.04
    assert found.low * found.high == pytest.approx(0.02**2)
    alone = trial_errors([check("held")], [0.02])
    assert alone is not None
    assert (alone.typical / alone.low, alone.shifted) == (pytest.approx(10 ** (3 * 1.28 / 20)), None)
    assert trial_errors([check("shifted")], [0.5]) is None
