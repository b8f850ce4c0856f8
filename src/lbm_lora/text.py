"""Read JSON and YAML that someone else wrote, within limits.

A text may nest so deeply, or repeat itself by reference so often, that reading it eats the stack, the memory or the
day. What exceeds the limits is refused in one line.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from lbm_lora.files import check_regular

MOST_BYTES = 16 * 2**20
"""Of a YAML or JSON file; a safetensors header has its own limit."""
MOST_VALUES = 100_000
"""Of a YAML file, those behind references counted each time."""
MOST_DIGITS = 40  # of a whole number in JSON


class TextError(ValueError):
    """A text is not in the format, or exceeds the limits. Its message completes `FILE `: `is not JSON: ...`."""


class _Loader(yaml.SafeLoader):
    """Loader with the numbers of YAML 1.2: 1e-4 is one, 0123 is 123 and not octal, and 1:30 is a text."""


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes a text which the loader would take for a number."""


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_NUMBERS = (
    (_INT, r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (_FLOAT, r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    (_FLOAT, r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
)
"""Tag, values and first characters (YAML 1.2.2, section 10.3.2)."""

for _kind in (_Loader, _Dumper):
    _kind.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for _tag, _values, _first in _NUMBERS:
        _kind.add_implicit_resolver(_tag, re.compile(f"(?:{_values})$"), list(_first))


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, base=0 if text.startswith(("0o", "0x")) else 10)


_Loader.add_constructor(_INT, _number)
_Loader.add_constructor("tag:yaml.org,2002:binary", yaml.SafeLoader.construct_undefined)


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        TextError: it is not JSON, repeats a key, holds NaN or Infinity, or nests too deeply.
    """
    try:
        return json.loads(
            text, object_pairs_hook=_pairs, parse_constant=_refuse_constant, parse_int=_whole, parse_float=_finite
        )
    except RecursionError:
        raise TextError("nests too deeply") from None
    except TextError:
        raise
    except ValueError as error:
        raise TextError(f"is not JSON: {' '.join(str(error).split())[:200]}") from None


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text, without tags that build Python objects. Numbers are those of YAML 1.2.

    Raises:
        TextError: it is not YAML, repeats a key, refers to itself, or exceeds a limit.
    """
    try:
        reader = _Loader(text)
        node = reader.get_single_node()
        if node is None:
            return None
        if _values_of(node, {}) > MOST_VALUES:
            raise TextError(f"has more than {MOST_VALUES:,} values once its references are followed")
        return reader.construct_document(node)
    except RecursionError:
        raise TextError("nests too deeply, or refers to itself") from None
    except TextError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # a date such as 2024-13-45 is a ValueError
        raise TextError(f"is not plain YAML: {' '.join(str(error).split())[:300]}") from None


def dump_yaml(values: object) -> str:
    """Return values as YAML, in their order; `parse_yaml` gives the same."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_text(path: Path) -> str:
    """Return the text of a file in UTF-8.

    Raises:
        OSError: it cannot be read, or is not a regular file.
        TextError: it is too large, or not UTF-8.
    """
    if check_regular(path) > MOST_BYTES:
        raise TextError(f"is larger than {MOST_BYTES // 2**20} MiB")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise TextError("is not a text in UTF-8") from None


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise TextError(f"holds a whole number of {len(text):,} digits; the limit is {MOST_DIGITS}")
    return int(text)


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise TextError(f"holds {text[:20]}, which leaves the range of numbers")
    return number


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_repeated([key for key, _ in pairs])
    return dict(pairs)


def _refuse_repeated(keys: Sequence[Hashable]) -> None:
    repeated = next((key for key, count in Counter(keys).items() if count > 1), None)
    if repeated is not None:
        raise TextError(f"repeats the key {repeated!r}")


def _refuse_constant(word: str) -> NoReturn:
    raise TextError(f"holds {word}, which is not JSON")


def _values_of(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the values of a node as if every reference were written out; checks that no key is repeated."""
    if known.get(id(node), 0) < 0:
        raise TextError("refers to itself")
    if id(node) not in known:
        known[id(node)] = -1
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            _refuse_repeated([key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        known[id(node)] = min(1 + sum(_values_of(part, known) for part in parts), MOST_VALUES + 1)
    return known[id(node)]
