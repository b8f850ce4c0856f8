"""Run commands in a worker, and compare folders before and after."""

import hashlib
import json
import os
import select
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
SECONDS = 20
"""Time that a command with bad input may take; it takes much less on an idle machine."""


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit code, its streams."""

    code: int | str
    out: str
    err: str
    seconds: float

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


class Worker:
    """A process of `worker.py`; a command that hangs ends with it, and the next one starts another.

    Args:
        environment: variables of the process.
    """

    def __init__(self, **environment: str) -> None:
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None

    def run(self, argv: list[str], seconds: float = SECONDS) -> Outcome:
        try:
            return Outcome(**self.ask({"argv": argv}, seconds))
        except TimeoutError:
            return Outcome("hangs", "", "", seconds)
        except EOFError as error:
            return Outcome(f"dies: {error}", "", "", 0)

    def ask(self, request: dict[str, Any], seconds: float = SECONDS) -> dict[str, Any]:
        """Send a request, and return the answer to it.

        Raises:
            TimeoutError: there is none in time. The process is killed.
            EOFError: the process ended.
        """
        process = self._started()
        assert process.stdin is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        return json.loads(self._line(process, seconds))

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            path = os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])
            environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            environment |= self._environment
            self._process = subprocess.Popen(
                [sys.executable, "-m", "faults.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=environment,
            )
            self._line(self._process, 300)
        return self._process

    def _line(self, process: subprocess.Popen[str], seconds: float) -> str:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        if not ready:
            self.close()
            raise TimeoutError
        line = process.stdout.readline()
        if not line:
            code = process.wait()
            self._process = None
            raise EOFError(str(code))
        return line

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder, by its path in it, with a digest of what it is; folders do not count."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            what = f"link to {path.readlink()}"
        elif stat.S_ISREG(mode):
            what = hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISDIR(mode):
            continue
        else:
            what = oct(stat.S_IFMT(mode))
        found[str(path.relative_to(folder))] = what
    return found


def stamps(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every file of a folder with what changes when it is written: quicker than `contents`."""
    rows = ((path, path.lstat()) for path in folder.rglob("*"))
    return {str(path): (row.st_ino, row.st_size, row.st_mtime_ns) for path, row in rows if not path.is_dir()}
