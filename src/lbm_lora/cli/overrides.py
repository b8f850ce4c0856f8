"""`--any.key value` on the command line of `train`: keys of the training file."""

from collections.abc import Collection, Sequence

import yaml

from lbm_lora.errors import ConfigError

OWN = ("path_config", "json", "no_json", "verbose", "no_verbose", "debug", "no_debug", "threads", "help")
"""Flags that are not keys of the file."""


def split_overrides(
    arguments: Sequence[str], lists: Collection[str] = ()
) -> tuple[list[str], tuple[tuple[str, str], ...]]:
    """Split arguments into the command's own, and (dotted key, YAML text) pairs of all others.

    `--key value`, `--key=value`; several words are a list (`--num_steps 1 2 4`), none stands for true.

    Args:
        lists: keys that take a list, also of one word.

    Raises:
        ConfigError: a word that belongs to no flag.
    """
    own: list[str] = []
    overrides: list[tuple[str, str]] = []
    for flag, words in _groups(arguments):
        key, equals, value = flag.removeprefix("--").partition("=")
        if not flag.startswith("--") or key.replace("-", "_") in OWN:
            own += [flag, *words]
        else:
            overrides.append((key, _yaml([value, *words] if equals else words, key.replace("-", "_") in lists)))
    return own, tuple(overrides)


def _groups(arguments: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Each flag with the words behind it. `-h` is a flag, a negative number is a word."""
    groups: list[tuple[str, list[str]]] = []
    for argument in arguments:
        if argument.startswith("--") or argument == "-h":
            groups.append((argument, []))
        elif groups:
            groups[-1][1].append(argument)
        else:
            raise ConfigError(f"'{argument}' belongs to no flag. A training file is given by --path_config.")
    return groups


def _yaml(words: Sequence[str], is_list: bool) -> str:
    if not words:
        return "true"
    if len(words) == 1 and not (is_list and words[0] != "null" and not words[0].startswith("[")):
        return words[0]
    return yaml.safe_dump([_scalar(word) for word in words], default_flow_style=True, width=float("inf"))


def _scalar(word: str) -> object:
    try:
        return yaml.safe_load(word)
    except yaml.YAMLError:
        return word
