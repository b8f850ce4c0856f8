"""Statistics shrunk until a LoRA is not worse than plain SVD."""

import pytest

from lbm_lora.extraction.shrinkage import RIDGES, Shrinkage, base_errors, is_safe, least_shrinkage
from lbm_lora.ranks import Choice, TrialErrors


@pytest.mark.parametrize("edge", range(len(RIDGES) + 1))
def test_the_least_safe_ridge_is_found_by_halving(edge: int) -> None:
    asked: list[float] = []

    def is_safe_at(ridge: float) -> bool:
        asked.append(ridge)
        return RIDGES.index(ridge) >= edge

    assert least_shrinkage(is_safe_at) == (RIDGES[edge] if edge < len(RIDGES) else None)
    assert len(asked) == 2


def errors(typical: float, shifted: float | None) -> TrialErrors:
    kinds = {} if shifted is None else {"content": shifted / 2, "smaller": shifted * 2}
    return TrialErrors(typical=typical, low=typical / 2, high=2 * typical, shifted=kinds)


def test_both_errors_must_not_be_above_those_of_plain_svd() -> None:
    plain = errors(0.1, 0.2)
    assert is_safe(errors(0.1, 0.2), plain)
    assert is_safe(errors(0.05, None), plain)
    assert not is_safe(errors(0.05, 0.21), plain)
    assert not is_safe(errors(0.11, 0.05), plain)


def test_a_file_records_what_was_compared() -> None:
    found = Shrinkage(kind="shrunk", ridge=1.0, errors=errors(0.1, 0.2), plain=errors(0.2, 0.3), base=errors(1, 1))
    assert found.facts() == {"plain_output_error": 0.2, "plain_shifted_output_error": 0.3, "ridge": 1.0}
    assert not found.is_useless
    alone = Shrinkage(kind="given", errors=errors(0.1, None), plain=errors(0.2, None), base=errors(0.05, None))
    assert alone.facts() == {"plain_output_error": 0.2}
    assert alone.is_useless


class Allocator:
    energy_sq = 16.0


class Selection:
    allocator = Allocator()


class BaseTrial:
    """A network that is only run with nothing but the base."""

    has_points = True
    runs = 0

    def take(self, deltas: object = ()) -> None:
        assert deltas == ()
        self.runs += 1

    def error(self) -> TrialErrors:
        return errors(0.3, 0.4)

    def images(self) -> None:
        return None


@pytest.mark.parametrize(("left", "is_run"), [(0.9, False), (1.1, True), (15.0, True)])
def test_the_base_is_run_only_if_a_lora_may_be_nearly_as_bad(left: float, is_run: bool) -> None:
    trial = BaseTrial()
    found = base_errors(Selection(), Choice(ranks={}, nbytes=1, error_sq=left), trial)  # pyright: ignore[reportArgumentType]
    assert trial.runs == is_run
    assert found == (errors(0.3, 0.4) if is_run else None)


def test_a_lora_that_was_not_compared_with_the_base_is_not_called_useless() -> None:
    assert not Shrinkage(kind="given", errors=errors(1.0, None), plain=errors(1.0, None), base=None).is_useless
