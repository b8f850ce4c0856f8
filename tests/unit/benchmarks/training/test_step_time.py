"""The bookkeeping of the step time."""

import numpy as np

from benchmarks.training.step_time import BY_HAND, OURS, WARM, StepClock, step_times, summed_up


def test_the_first_steps_do_not_count() -> None:
    found = step_times([(k, k * k) for k in range(WARM + 3)])
    assert found.tolist() == [[1, (WARM + 1) ** 2 - WARM**2], [1, (WARM + 2) ** 2 - (WARM + 1) ** 2]]


def test_a_clock_reads_the_steps_of_the_training_alone() -> None:
    clock = StepClock()
    clock.start(9, "encoding")
    clock.advance()
    clock.start(2, "training")
    clock.advance()
    clock.advance()
    assert len(clock.readings) == 3


def test_ratios_are_of_medians_over_all_rounds_and_of_each_round() -> None:
    def rounds(*values: float) -> list[np.ndarray]:
        return [np.array([[value, 2 * value]] * 3) for value in values]

    found = summed_up({BY_HAND: rounds(1, 2, 4), OURS: rounds(1, 3, 4)})
    assert found[BY_HAND]["cpu_ratio"] == 1
    assert (found[OURS]["cpu_s"], found[OURS]["wall_s"], found[OURS]["cpu_ratio"]) == (3, 6, 1.5)
    assert found[OURS]["wall_ratios"] == [1, 1.5, 1]
    assert found[OURS]["steps"] == 9
