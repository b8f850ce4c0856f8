"""The options of the verb `doctor`."""

from dataclasses import dataclass
from typing import Annotated

from lbm_lora.configs.marks import HIDDEN, POSITIONAL, Named


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Check the installation and the machine, or what a command would need, without running it: its inputs and outputs,
    memory and disk, and what would fail. The exit code is 1 if a problem was found."""

    command: Annotated[tuple[str, ...], Named("COMMAND"), POSITIONAL] = ()
    """A command with its flags, after `--` or in quotes. It is read and checked as usual, and not run."""
    parsed: Annotated[object, HIDDEN, Named("CONFIG")] = None
    """Config of that command, from the front end that has read it."""
