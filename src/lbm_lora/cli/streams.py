"""The standard streams: what becomes of one that is closed (`>&-`) or full, or whose reader has left (`| head`)."""

import io
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

from lbm_lora.errors import OutputError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

BROKEN_PIPE = 141
"""The exit code: 128 + SIGPIPE, as a shell reports it."""


class _Lossy(io.FileIO):
    """A stream for messages: those that it cannot take are dropped, and the work goes on."""

    def write(self, data: "ReadableBuffer", /) -> int | None:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def prepare_streams() -> None:
    """Make the streams of this process fit to be used, whatever they are connected to.

    A closed one leads nowhere: else the next file that is opened would take its place, and get what is printed. A
    width of 0 columns, at which rich prints nothing, counts as unknown.
    """
    if not os.environ.get("COLUMNS", "80").strip("0"):
        del os.environ["COLUMNS"]
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    if sys.stderr is sys.__stderr__:
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(_Lossy(2, "w", closefd=False)),
            encoding=sys.stderr.encoding,
            errors="backslashreplace",
            line_buffering=True,
        )


def write_result(text: str) -> None:
    """Write on stdout; see `named_stdout`."""
    with named_stdout():
        write(sys.stdout, text)


@contextmanager
def named_stdout() -> Generator[None]:
    """Turn a failed write into an error that names stdout.

    Raises:
        BrokenPipeError: the reader, such as `head`, has seen enough.
        OutputError: any other reason.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"stdout: {error.strerror}.") from None


def write(stream: TextIO | io.TextIOBase, text: str) -> None:
    """Write at once, in the stream's encoding: characters that it lacks are escaped."""
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def leave_stdout() -> None:
    """Point stdout nowhere, so that the flush at the interpreter's end does not fail again."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
