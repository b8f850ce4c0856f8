"""Output of the command line: results on stdout; progress, notes, warnings and errors on stderr, a line each.

    with session() as console:
        result = run(config, console.progress)
        console.print_result(text, result, as_json=False)
    return console.exit_code

An exception that leaves the block becomes a line and an exit code (`lbm_lora.errors`).
"""

import errno
import json
import logging
import math
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TextIO

from pydantic import BaseModel
from rich.console import Console as Terminal

from lbm_lora.cli.bars import Bars
from lbm_lora.cli.spelling import line, printable
from lbm_lora.cli.streams import BROKEN_PIPE, leave_stdout, write, write_result
from lbm_lora.errors import InputError, LbmLoraError, QualityError, spelled
from lbm_lora.progress import LbmLoraWarning
from lbm_lora.runtime import Terminated, terminated_as_exception
from lbm_lora.verbs.verb import as_flag

_UNEXPECTED = LbmLoraError.exit_code
_REFUSED_MEMORY = ("can't allocate memory", "could not create a primitive", "unable to mmap", "bad_alloc")
_OUT_OF_MEMORY = (
    "Out of memory. If the command has them, these need less: --torch_dtype bf16, a smaller --size, --vae_tiling on, "
    "--device cpu."
)
_SIGNALLED = 128  # + the number of the signal, as a shell reports it
# failures of the machine are not defects of ours: a full or read-only disk, a folder of somebody else, a limit
_REFUSED = frozenset({
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO, errno.EMFILE,
    errno.ENFILE, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ETXTBSY, errno.EBUSY, errno.ENXIO,
})  # fmt: skip


class Console:
    """The two streams of one command.

    Attributes:
        exit_code: exit code of the command so far.
        progress: the listener for a verb.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self._terminal = Terminal(stderr=True, force_interactive=None if _is_screen() else False)
        self.progress = Bars(self._terminal, lambda message: self.say("note", message))

    def print_result(self, text: str, result: object, *, as_json: bool = False) -> None:
        """Print the result of the command on stdout: `text`, or `result` as JSON (see `jsonable`)."""
        self.progress.stop()
        shown = json.dumps(jsonable(result), indent=2, allow_nan=False) if as_json else printable(text)
        write_result(shown + "\n")

    def fail(self, failure: QualityError) -> None:
        """Record that the work is done and its result misses a requested limit."""
        self.progress.stop()
        self.say("error", spelled(failure.args, as_flag))
        self.exit_code = QualityError.exit_code

    def interrupted(self, interrupt: KeyboardInterrupt) -> None:
        """Report Ctrl-C, SIGTERM or SIGHUP."""
        self.progress.stop(finished=False)
        self.say("error", "terminated." if isinstance(interrupt, Terminated) else "interrupted.")
        self.exit_code = _SIGNALLED + (interrupt.number if isinstance(interrupt, Terminated) else signal.SIGINT)

    def say(self, kind: str, message: str) -> None:
        """Write one line on stderr, `kind: message`, above a bar if there is one."""
        self._terminal.print(line(kind, message), highlight=False, soft_wrap=True)


@contextmanager
def session(*, debug: bool = False) -> Generator[Console, None, None]:
    """Run a command: an exception becomes a line on stderr and `exit_code`, and does not leave the block.

    Args:
        debug: show the traceback of expected errors as well.
    """
    console = Console()
    with warnings_as_lines(lambda message: console.say("warning", message)), terminated_as_exception():
        try:
            yield console
            console.progress.stop()
        except KeyboardInterrupt as interrupt:
            console.interrupted(interrupt)
        except BrokenPipeError:
            leave_stdout()  # the reader, such as `head`, has seen enough
            console.exit_code = BROKEN_PIPE
        except Exception as error:
            interrupt = interrupt_behind(error)
            if interrupt is not None:
                console.interrupted(interrupt)
                return
            console.progress.stop(finished=False)
            message, console.exit_code = described(error)
            leave_stdout()  # which may be what failed
            if debug or console.exit_code == _UNEXPECTED:
                write(sys.stderr, traceback.format_exc())
            console.say("error", message)
        finally:
            console.progress.stop(finished=False)  # for SystemExit, which passes


def interrupt_behind(error: BaseException) -> KeyboardInterrupt | None:
    """Return the interrupt during whose handling an error was raised: some libraries fail when they are interrupted."""
    context = error.__context__
    while context is not None and not isinstance(context, KeyboardInterrupt):
        context = context.__context__
    return context


def _is_out_of_memory(error: Exception) -> bool:
    """torch and oneDNN say by a RuntimeError that memory was refused on the CPU."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's, on a device
        or (isinstance(error, RuntimeError) and any(text in str(error) for text in _REFUSED_MEMORY))
    )


def described(error: Exception) -> tuple[str, int]:
    """Return the line and the exit code of an exception."""
    if isinstance(error, LbmLoraError) and error.exit_code != _UNEXPECTED:
        return spelled(error.args, as_flag), error.exit_code
    if isinstance(error, OSError) and error.errno in _REFUSED:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}.", InputError.exit_code
    if _is_out_of_memory(error):
        return f"{_OUT_OF_MEMORY} {error}".rstrip(), InputError.exit_code
    report = "please report the lines above, with what `lbm-lora doctor` says"
    return f"{type(error).__name__}: {error} (a defect of lbm-lora: {report})", _UNEXPECTED


@contextmanager
def warnings_as_lines(say: Callable[[str], None]) -> Generator[None, None, None]:
    """Give Python's warnings, and log records from WARNING up, to `say`: each text once."""
    seen: set[str] = set()
    call_handlers = logging.Logger.callHandlers

    def once(message: str) -> None:
        if message not in seen:
            seen.add(message)
            say(message)

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        once(spelled(message.args, as_flag) if isinstance(message, LbmLoraWarning) else str(message))

    def handle(self: logging.Logger, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            once(record.getMessage())
        else:
            call_handlers(self, record)

    # a handler on the root logger would not do: libraries hang handlers of their own on theirs, and stop there
    logging.Logger.callHandlers = handle
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("always", category=LbmLoraWarning)
            warnings.showwarning = show
            yield
    finally:
        logging.Logger.callHandlers = call_handlers


def jsonable(value: object) -> object:
    """Return a result as JSON values.

    Dataclasses become objects of their fields and properties, under the names that pydantic's have in JSON; paths and
    everything unknown become their text; numbers that are not finite the strings `inf`, `-inf` and `nan`.
    """
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Enum):
        return jsonable(value.value)
    if isinstance(value, BaseModel):
        return jsonable(value.model_dump())
    if is_dataclass(value) and not isinstance(value, type):
        return {_json_name(value, name): jsonable(getattr(value, name)) for name in _members(value)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return [jsonable(item) for item in sorted(value, key=str)]
    return value.as_posix() if isinstance(value, Path) else str(value)


def _members(value: object) -> list[str]:
    """Return public fields and properties of a dataclass, in the order of their definition."""
    derived = [name for name, member in vars(type(value)).items() if isinstance(member, (property, cached_property))]
    names = [field.name for field in fields(value)]  # pyright: ignore[reportArgumentType]
    return [name for name in [*names, *derived] if not name.startswith("_")]


def _json_name(value: object, name: str) -> str:
    """The alias of a field of a dataclass of pydantic, where it has one."""
    field = getattr(value, "__pydantic_fields__", {}).get(name)
    return (field and field.serialization_alias) or name


def _is_screen() -> bool:
    """Return whether somebody watches stderr: FORCE_COLOR makes no terminal of a pipe, and a CI may have a terminal."""
    return sys.stderr.isatty() and os.environ.get("CI", "").lower() in ("", "0", "false")
