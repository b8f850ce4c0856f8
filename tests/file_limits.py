"""A limit on the size of files, as `ulimit -f` sets it: the system refuses in the middle of a write."""

import resource
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def largest_file(nbytes: int) -> Generator[None]:
    """Let this process write no more than some bytes to a file; Python ignores the signal, so a write fails (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
