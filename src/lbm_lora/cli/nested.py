"""The command line that `doctor` checks, apart from the flags of `doctor`."""

import shlex
from collections.abc import Sequence

from lbm_lora.errors import ConfigError

_PROGRAM = "lbm-lora"


def split_line(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words for `doctor` and those of the command line that it checks.

    The command line follows `--`, or is the first word that is no flag, with what follows: `doctor extract --rank 8`,
    `doctor "extract --rank 8"`. A copied `lbm-lora` in front of it is left out.

    Raises:
        ConfigError: quotes in a quoted command line are not closed.
    """
    starts = (at for at, word in enumerate(words) if word == "--" or not _is_own(words, at))
    at = next(starts, len(words))
    own, line = list(words[:at]), list(words[at:])
    if line[:1] == ["--"]:
        line = line[1:]
    if len(line) == 1:
        try:
            line = shlex.split(line[0])
        except ValueError as error:
            raise ConfigError(f"'{line[0]}' cannot be split into words: {error}.") from None
    return own, line[1:] if line[:1] == [_PROGRAM] else line


def _is_own(words: Sequence[str], at: int) -> bool:
    """Whether a word is a flag, or the value of --threads."""
    return words[at].startswith("-") or (at > 0 and words[at - 1] == "--threads")
