"""Kill a training run at many moments, let it go on, and compare with an unbroken one. Run by test_training.py.

    python killed_runs.py TRAINING_FILE FOLDER

Every run is a fork of this process, which has imported everything and computed nothing. Prints one line for each
moment, `moment: steps before the kill, same`.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lbm_lora.training.checkpoint import RunFolder
from lbm_lora.training.fit import fit
from lbm_lora.training.settings import read_train_config


class Killer:
    """A listener that ends its process at one step."""

    def __init__(self, at: int = 0) -> None:
        self._at = at
        self._step = 0
        self._phase = ""

    def start(self, total: int, what: str) -> None:
        self._phase = what

    def advance(self, n: int = 1) -> None:
        self._step += self._phase == "training"
        if self._step == self._at > 0:
            kill()

    def note(self, message: str) -> None:
        pass


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_replace(number: int, *, before: bool) -> None:
    """End this process before or after the n-th file takes its name."""
    rename, count = Path.replace, 0

    def counted(self: Path, target: Any) -> Path:
        nonlocal count
        count += 1
        if count == number and before:
            kill()
        done = rename(self, target)
        if count == number:
            kill()
        return done

    Path.replace = counted


def run(file: Path, folder: Path, prepare: Callable[[], Killer]) -> int:
    """One run in a process of its own; returns the signal that ended it, 0 for none."""
    child = os.fork()
    if not child:
        config = read_train_config(file, {"save_ckpt_path": folder})
        assert config.base_model_path is not None
        fit(config, config.base_model_path, prepare())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"exit code {os.WEXITSTATUS(status)}"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def at_replace(number: int, *, before: bool) -> Callable[[], Killer]:
    def prepare() -> Killer:
        kill_at_replace(number, before=before)
        return Killer()

    return prepare


def main(file: Path, folder: Path) -> None:
    unbroken = RunFolder(folder / "unbroken")
    assert run(file, unbroken.path, Killer) == 0
    moments: dict[str, Callable[[], Killer]] = {f"step {k}": lambda k=k: Killer(k) for k in (1, 3, 4)}
    # state, configuration, step file and last file; then state, step file and last file of each save
    moments |= {f"before file {n}": at_replace(n, before=True) for n in (2, 3, 4, 7)}
    moments |= {f"after file {n}": at_replace(n, before=False) for n in (4, 5)}
    for moment, prepare in moments.items():
        broken = RunFolder(folder / moment.replace(" ", "-"))
        assert run(file, broken.path, prepare) == signal.SIGKILL, moment
        saved = len(broken.step_files())
        assert run(file, broken.path, Killer) == 0
        files, others = (sorted(path.name for path in one.path.glob("*.safetensors")) for one in (unbroken, broken))
        assert files == others, moment
        same = all((broken.path / name).read_bytes() == (unbroken.path / name).read_bytes() for name in files)
        print(f"{moment}: {saved} saves, {'same' if same else 'DIFFERENT'}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
