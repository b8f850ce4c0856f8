"""The pins of the lower bounds, and what the tested set of constraints.txt has to do with them."""

import re
import tomllib
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tools.lowest import PYPROJECT, pins

PROJECT: dict[str, Any] = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
CONSTRAINTS = PYPROJECT.with_name("constraints.txt").read_text(encoding="utf-8")


def project(*dependencies: str, **extras: list[str]) -> dict[str, Any]:
    return {"name": "pack", "dependencies": list(dependencies), "optional-dependencies": extras}


def test_extras_are_followed() -> None:
    made = project("b>=2.0,<3", one=["a[x]>=1.5", "pack[two]"], two=["c~=0.3", "b>=2.0"], three=["d>=9"])
    assert pins(made, ["one"]) == ["a==1.5", "b==2.0", "c==0.3"]
    assert pins(made, []) == ["b==2.0"]


@pytest.mark.parametrize(
    ("dependencies", "message"),
    [
        (["a"], "'a' has no lower bound"),
        (["a<2"], "'a<2' has no lower bound"),
        (["a>=1", "a>=2"], "a has two lower bounds: 1 and 2"),
    ],
)
def test_a_requirement_needs_one_lower_bound(dependencies: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pins(project(*dependencies), [])


def test_every_extra_has_lower_bounds() -> None:
    lowest = [Requirement(pin) for pin in pins(PROJECT, list(PROJECT["optional-dependencies"]))]
    assert {"torch", "diffusers", "gradio", "pytest", "ruff"} <= {pin.name for pin in lowest}


def test_the_tested_set_has_a_version_in_range_for_every_requirement() -> None:
    tested = {canonicalize_name(r.name): r for r in map(Requirement, re.findall(r"^\w.*$", CONSTRAINTS, re.MULTILINE))}
    extras = [name for name in PROJECT["optional-dependencies"] if name not in ("app", "all")]
    for pin in map(Requirement, pins(PROJECT, extras)):
        (chosen,) = tested[canonicalize_name(pin.name)].specifier
        (lowest,) = pin.specifier
        assert Version(chosen.version) >= Version(lowest.version), pin.name


def test_the_tested_set_leaves_builds_to_the_machine() -> None:
    tested = [Requirement(line) for line in re.findall(r"^\w.*$", CONSTRAINTS, re.MULTILINE)]
    assert [r.name for r in tested if r.name.startswith(("nvidia", "triton", "lbm"))] == []
    loose = {r.name for r in tested if {s.operator for s in r.specifier} != {"=="}}
    assert loose == {"torch", "torchvision"}
