"""What becomes of a command whose reader has left: `lbm-lora layers ... | head`."""

import os
import sys
from contextlib import suppress

BROKEN_PIPE = 141
"""The exit code: 128 + SIGPIPE, as a shell reports it."""


def leave_stdout() -> None:
    """Point stdout nowhere, so that the flush at the interpreter's end does not fail again."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
