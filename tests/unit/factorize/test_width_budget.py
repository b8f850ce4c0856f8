from itertools import product

import numpy as np
import pytest

from lbm_lora.factorize import WIDTHS, WidthCosts, allocate_widths, allocate_widths_for

BYTES = np.array([0, *WIDTHS])


def costs(
    *squares: float, fixed: int = 0, dense: bool = False, is_needed: bool = False, rest: float = 0.0
) -> WidthCosts:
    noise = np.append(1.0, 4.0 ** -np.array(WIDTHS))
    return WidthCosts(
        errors=noise[:, None] * np.array(squares)[None],
        nbytes=BYTES,
        rest=rest,
        fixed_bytes=fixed,
        dense_errors=np.append(np.inf, noise[1:] * sum(squares)) if dense else None,
        dense_bytes=3 * BYTES if dense else None,
        is_needed=is_needed,
    )


@pytest.mark.parametrize("budget", [0, 3, 9, 20, 60, 1000])
def test_no_choice_of_the_same_bytes_leaves_less(budget: int) -> None:
    given = [costs(8.0, 1.0), costs(3.0)]
    found = allocate_widths(given, budget)
    assert found.nbytes <= budget
    errors = np.concatenate([one.errors for one in given], axis=1)
    every = list(product(range(len(BYTES)), repeat=3))
    within = [
        sum(errors[at, rank] for rank, at in enumerate(one)) for one in every if sum(BYTES[list(one)]) <= found.nbytes
    ]
    assert found.error_sq == pytest.approx(min(within))


def test_the_smallest_that_meets_an_error() -> None:
    given = [costs(8.0, 1.0), costs(3.0)]
    found = allocate_widths_for(given, 0.01)
    assert found.error_sq <= 0.01
    assert allocate_widths(given, found.nbytes - 1).error_sq > 0.01


def test_a_module_may_be_stored_dense_or_not_at_all() -> None:
    dense = allocate_widths([costs(1.0, 1.0, 1.0, 1.0, dense=True)], 40)
    assert dense.widths == (None,)
    assert dense.dense[0] > 0
    assert dense.nbytes == 3 * dense.dense[0]
    nothing = allocate_widths([costs(1.0, fixed=100)], 50)
    assert (nothing.widths, nothing.nbytes, nothing.error_sq) == (((0,),), 0, 1.0)


def test_what_is_needed_is_never_left_out() -> None:
    found = allocate_widths([costs(1e-9, is_needed=True), costs(5.0)], 0)
    assert found.widths == ((2,), (0,))
