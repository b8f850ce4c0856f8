"""Numbers of every verb: a range holds in Python as on the command line."""

import math
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import lbm_lora
from lbm_lora.cli.flags import Flag, flags_of
from lbm_lora.errors import ConfigError
from lbm_lora.verbs import VERBS, verb_named

REQUIRED: dict[str, Any] = {"to": "kohya", "save_path": "b.ckpt"}


def bounded(name: str) -> list[Flag]:
    return [flag for flag in flags_of(verb_named(name).function) if flag.bounds is not None]


CASES = [(name, flag) for name in VERBS for flag in bounded(name)]


@pytest.mark.parametrize(("name", "flag"), CASES, ids=[f"{name}-{flag.name}" for name, flag in CASES])
def test_a_number_out_of_its_range_is_refused_by_the_parameters_name(name: str, flag: Flag, tmp_path: Path) -> None:
    module, _, function = VERBS[name].partition(":")
    call = getattr(import_module(f"lbm_lora.verbs.{module}"), function)
    assert flag.bounds is not None
    needed = [
        one.parameter
        for one in flags_of(verb_named(name).function)
        if one.is_required and one.parameter != flag.parameter
    ]
    values = {one: REQUIRED.get(one, str(tmp_path / one)) for one in needed}
    for value in (flag.bounds.least - 1, flag.bounds.most + 1):
        if not math.isinf(value):
            with pytest.raises(ConfigError, match=rf"^{flag.parameter}\b"):
                call(**values, **{flag.parameter: value})


def test_there_are_such_numbers() -> None:
    assert {"extract", "merge", "data pack", "refine"} <= {name for name, _ in CASES}
    with pytest.raises(ConfigError, match=r"^rank must be .*1.*got -5\.$"):
        lbm_lora.extract("base", "tuned", rank=-5)
