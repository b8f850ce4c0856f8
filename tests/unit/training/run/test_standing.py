"""Where a run stands at its start."""

import math
from dataclasses import asdict

from lbm_lora.trainable.state import TrainState
from lbm_lora.training.run.standing import Standing, standing_of


def test_a_new_run_stands_at_its_beginning() -> None:
    standing = standing_of(None)
    assert (standing.step, standing.epoch, standing.batch, standing.validated) == (0, 0, 0, -1)
    assert math.isnan(standing.loss)


def test_a_run_that_goes_on_stands_where_it_was_left() -> None:
    state = TrainState(
        step=7, epoch=2, batch=3, values={}, optimizer={}, average=None, origins={}, best=-0.5, best_step=4,
        validated=6, identity={}, config={},
    )  # fmt: skip
    wanted = Standing(step=7, epoch=2, batch=3, best=-0.5, best_step=4, validated=6)
    found = asdict(standing_of(state))
    assert {key: value for key, value in found.items() if key != "loss"} == {
        key: value for key, value in asdict(wanted).items() if key != "loss"
    }
