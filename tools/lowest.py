"""Print the lower bounds of pyproject.toml as pins, a pip constraints file.

    python tools/lowest.py test > .venv-lowest/lowest.txt
    pip install --editable '.[test]' --constraint .venv-lowest/lowest.txt

The arguments are extras; the package's own dependencies always count. Needs nothing but Python, since it runs before
anything is installed. `make test-lowest` uses it.
"""

import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"

_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[(?P<extras>[\w,\s-]+)\])?(?P<versions>.*)")
_LOWER_BOUND = re.compile(r"(?:>=|==|~=)\s*([\w.]+)")


def pins(project: dict[str, Any], extras: Sequence[str]) -> list[str]:
    """`name==version` for each requirement of the package and of some of its extras, sorted.

    Args:
        project: the table `[project]` of a pyproject.toml.
        extras: names of extras; extras that they ask for count too.

    Raises:
        ValueError: a requirement has no lower bound, or two different ones.
        KeyError: there is no such extra.
    """
    lowest: dict[str, str] = {}
    for requirement in _requirements(project, extras):
        match = _REQUIREMENT.fullmatch(requirement)
        bound = _LOWER_BOUND.search(match["versions"]) if match else None
        if match is None or bound is None:
            raise ValueError(f"'{requirement}' has no lower bound.")
        if lowest.setdefault(match["name"], bound[1]) != bound[1]:
            raise ValueError(f"{match['name']} has two lower bounds: {lowest[match['name']]} and {bound[1]}.")
    return sorted(f"{name}=={version}" for name, version in lowest.items())


def _requirements(project: dict[str, Any], extras: Sequence[str]) -> Iterator[str]:
    """The requirements of other packages; those of the package itself, as `lbm-lora[infer]`, are followed."""
    wanted, seen = [*extras], set[str]()
    yield from project["dependencies"]
    while wanted:
        extra = wanted.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for requirement in project["optional-dependencies"][extra]:
            match = _REQUIREMENT.fullmatch(requirement)
            if match and match["name"] == project["name"]:
                wanted += [name.strip() for name in match["extras"].split(",")]
            else:
                yield requirement


if __name__ == "__main__":
    print(*pins(tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"], sys.argv[1:]), sep="\n")
