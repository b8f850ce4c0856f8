"""`--any.key value` on the command line of `train`: keys of the training file."""

from collections.abc import Collection, Sequence

import yaml

from lbm_lora.cli.arguments import grouped
from lbm_lora.errors import ConfigError
from lbm_lora.text import TextError, parse_yaml


def split_overrides(
    arguments: Sequence[str], own_flags: Collection[str], lists: Collection[str] = (), texts: Collection[str] = ()
) -> tuple[list[str], tuple[tuple[str, str], ...]]:
    """Split arguments into the command's own, and (dotted key, YAML text) pairs of all others.

    `--key value`, `--key=value`; several words are a list (`--num_steps 1 2 4`), none stands for true.

    Args:
        own_flags: names of flags that are not keys of the file.
        lists: keys that take a list, also of one word.
        texts: keys that take texts or paths: their words are these as they are, and no YAML.

    Raises:
        ConfigError: a word that belongs to no flag.
    """
    own: list[str] = []
    overrides: list[tuple[str, str]] = []
    for flag, words in grouped(arguments):
        if not flag:
            raise ConfigError(f"'{words[0]}' belongs to no flag. A training file is given by --path_config.")
        key, equals, value = flag.removeprefix("--").partition("=")
        if not flag.startswith("--") or key.replace("-", "_") in own_flags:
            own += [flag, *words]
        else:
            name = key.replace("-", "_")
            given = [value, *words] if equals else words
            overrides.append((key, _yaml(given, is_list=name in lists, is_text=name in texts)))
    return own, tuple(overrides)


def _yaml(words: Sequence[str], *, is_list: bool, is_text: bool) -> str:
    if not words:
        return "true"
    if len(words) == 1 and (words[0] == "null" or not is_list or words[0].startswith("[")):
        is_literal = is_text and words[0] != "null" and not is_list
        return _dumped(words[0]) if is_literal else words[0]
    if is_text:
        return _dumped(list(words))
    return yaml.safe_dump([_scalar(word) for word in words], default_flow_style=True, width=float("inf"))


def _dumped(texts: str | list[str]) -> str:
    """Return texts as YAML in quotes, whatever they mean without."""
    return yaml.safe_dump(
        texts, default_flow_style=True, default_style='"', width=float("inf"), allow_unicode=True
    ).strip()


def _scalar(word: str) -> object:
    try:
        return parse_yaml(word)
    except TextError:
        return word
