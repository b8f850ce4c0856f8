"""Names of parameters and modules, and patterns that select them.

A *param name* is the full dotted path, `mid_block.attentions.0.proj_in.weight`; a *module name* is the path without
its last part. Both are relative to the component: they do not include the checkpoint's prefix (`denoiser.`).
Only this module splits param names.

Patterns: a plain word matches any part of the name; `*`, `?` or `[` makes it a glob over the full name; `re:` starts
a regular expression that may match anywhere, and is refused where it takes longer than a second. Where parameters are
chosen, a pattern may match the param name or its module name: `mid_block.*.proj_in` selects both the weight and the
bias of those modules.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import NewType

import regex

from lbm_lora.errors import PatternError

ParamName = NewType("ParamName", str)
ModuleName = NewType("ModuleName", str)

DENOISER_PREFIX = "denoiser."
"""Prefix of the component that an LBM LoRA changes."""
ATTENTION = ("attn1.to_", "attn2.to_")
"""Patterns of the attention layers: queries, keys, values and outputs."""

_SECONDS = 1  # for a pattern on one name


def module_of(name: ParamName) -> ModuleName:
    """`a.b.weight` -> `a.b`; a parameter at the root belongs to the module ``."""
    return ModuleName(name.rpartition(".")[0])


def leaf_of(name: ParamName) -> str:
    """`a.b.weight` -> `weight`."""
    return name.rpartition(".")[2]


def weight_of(module: ModuleName) -> ParamName:
    """`a.b` -> `a.b.weight`."""
    return ParamName(f"{module}.weight" if module else "weight")


def bias_of(module: ModuleName) -> ParamName:
    """`a.b` -> `a.b.bias`."""
    return ParamName(f"{module}.bias" if module else "bias")


def matcher(pattern: str) -> Callable[[str], bool]:
    """Return the predicate for one pattern."""
    if not pattern.removeprefix("re:").strip():
        raise PatternError("an empty pattern selects nothing. Give part of a name, a glob, or re:REGEX.")
    if pattern.startswith("re:"):
        try:
            compiled = regex.compile(pattern[3:])
        except (regex.error, RecursionError, OverflowError) as error:
            raise PatternError(f"pattern '{pattern}': the regular expression does not compile: {error}.") from None
        return lambda name: _found(compiled, name)
    if any(sign in pattern for sign in "*?["):
        glob = re.compile(fnmatch.translate(pattern))
        return lambda name: glob.match(name) is not None
    return lambda name: pattern in name


def _found(compiled: "regex.Pattern[str]", name: str) -> bool:
    """Search a name, for a limited time: an expression may try exponentially many ways to match."""
    try:
        return compiled.search(name, timeout=_SECONDS) is not None
    except TimeoutError:
        raise PatternError(
            f"pattern 're:{compiled.pattern}' takes more than {_SECONDS} s for one name. Nested repetitions such as "
            "(a+)+ do that: write it simpler."
        ) from None


def select(names: Iterable[str], patterns: Sequence[str], *, prefix: str = "", params: bool = False) -> set[str]:
    """Return the names that at least one pattern matches. Patterns may include `prefix` or omit it.

    Args:
        names: param or module names, relative to the component.
        patterns: see the module's docstring.
        prefix: the component's prefix; names are also matched with it in front (`denoiser.mid_block...`).
        params: whether the names are param names, so that patterns may also match module names.

    Raises:
        PatternError: a pattern is malformed or matches no name; lists the nearest names.
    """
    candidates = list(names)
    chosen: set[str] = set()
    for pattern in patterns:
        matches = matcher(pattern)
        found = {name for name in candidates if any(map(matches, _forms(name, prefix, params)))}
        if not found:
            raise PatternError(_no_match(pattern, candidates))
        chosen |= found
    return chosen


def left_out(
    names: Sequence[ParamName], *, include: Sequence[str], exclude: Sequence[str], prefix: str
) -> dict[ParamName, str]:
    """Return the params that patterns leave out, with the reason: those not in `include`, if given, or in `exclude`."""
    reasons: dict[ParamName, str] = {}
    if include:
        kept = select(names, include, prefix=prefix, params=True)
        reasons |= {name: "not in --include" for name in names if name not in kept}
    if exclude:
        dropped = select(names, exclude, prefix=prefix, params=True)
        reasons |= {name: "in --exclude" for name in names if name in dropped}
    return reasons


def _forms(name: str, prefix: str, params: bool) -> list[str]:
    """Return the strings that a pattern may match for one name."""
    module = module_of(ParamName(name)) if params else ""
    forms = [name, module] if module else [name]
    return [*forms, *(prefix + form for form in forms)] if prefix else forms


def _no_match(pattern: str, names: Sequence[str]) -> str:
    word = pattern.removeprefix("re:").strip("*^$.").rpartition("*")[2]
    parts = {part for name in names for part in name.split(".") if not part.isdigit()} | set(names)
    near = get_close_matches(word, sorted(parts), n=4, cutoff=0.5)
    hint = f" Nearest: {', '.join(near)}." if near else ""
    return f"pattern '{pattern}' matches none of {len(names):,} names.{hint} `lbm-lora layers` lists them."
