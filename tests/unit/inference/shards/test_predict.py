"""What one process does with the shards that are left. Several processes: tests/e2e/test_infer_shards.py."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from PIL import Image

from lbm_lora.errors import DataError, OutputError
from lbm_lora.file_plan import FilePlan
from lbm_lora.inference.shards.predict import Predicted, predict
from lbm_lora.inference.shards.shard_jobs import ShardJob, ShardKeys, plan_shards
from lbm_lora.inference.shards.translate_shard import ShardTask, Translate
from lbm_lora.progress import Silent
from lbm_lora.training.launch import open_fabric

KEYS = ShardKeys(source="source.png")


@dataclass(frozen=True)
class OneProcess:
    device: str = "cpu"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"


class Steps(Silent):
    def __init__(self) -> None:
        self.phases: list[tuple[int, str]] = []
        self.done = 0

    def start(self, total: int, what: str) -> None:
        self.phases.append((total, what))

    def advance(self, n: int = 1) -> None:
        self.done += n


@pytest.fixture
def shards(tmp_path: Path, png: Callable[..., bytes], write_shard: Callable[..., Path]) -> Callable[[], list[ShardJob]]:
    """`shards()`: the jobs of three shards of two images each, with what is there already."""
    for number in range(3):
        write_shard(f"in/{number}.tar", {f"{number}{i}": {"source.png": png(2 * number + i)} for i in range(2)})
    patterns = [f"{tmp_path}/in/{{0..2}}.tar"]
    return lambda: plan_shards(patterns, tmp_path / "out", KEYS, cache_dir=None, files=FilePlan())


def run(jobs: list[ShardJob], translate: Translate, steps: Steps | None = None, max_corrupt: float = 0.0) -> Predicted:
    fabric = open_fabric(OneProcess())

    def load(device: torch.device) -> Translate:
        assert device == torch.device("cpu")
        return translate

    task = ShardTask(keys=KEYS, format="png", settings={"seed": 0})
    return predict(fabric, jobs, task, load, max_corrupt=max_corrupt, progress=steps or Steps())


def copy(source: Image.Image, _: Image.Image | None) -> Image.Image:
    return source


def test_only_what_is_left_is_done(shards: Callable[[], list[ShardJob]], tmp_path: Path) -> None:
    steps = Steps()
    assert list(run(shards(), copy, steps).records) == ["0.tar", "1.tar", "2.tar"]
    assert (steps.phases, steps.done) == ([(6, "translating")], 6)
    (tmp_path / "out/1.tar").unlink()
    again = Steps()
    assert list(run(shards(), copy, again).records) == ["1.tar"]
    assert again.phases == [(2, "translating")]
    nothing = Steps()
    assert run(shards(), copy, nothing) == Predicted(records={}, stopped_by="")
    assert nothing.phases == []


def test_an_error_keeps_what_is_done_and_is_raised(shards: Callable[[], list[ShardJob]], tmp_path: Path) -> None:
    def failing(source: Image.Image, _: Image.Image | None) -> Image.Image:
        if (tmp_path / "out/0.tar").exists():
            raise OutputError("the disk is full")
        return source

    with pytest.raises(OutputError, match="the disk is full"):
        run(shards(), failing)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.tar", "0.tar.json", "infer.json"]


def test_a_signal_drops_the_shard_in_work(shards: Callable[[], list[ShardJob]], tmp_path: Path) -> None:
    def stopping(source: Image.Image, _: Image.Image | None) -> Image.Image:
        if (tmp_path / "out/0.tar").exists():
            os.kill(os.getpid(), signal.SIGTERM)
        return source

    made = run(shards(), stopping)
    assert (list(made.records), made.stopped_by) == (["0.tar"], "SIGTERM")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.tar", "0.tar.json", "infer.json"]


def test_too_much_that_is_corrupt_ends_it(
    shards: Callable[[], list[ShardJob]], tmp_path: Path, png: Callable[..., bytes], write_shard: Callable[..., Path]
) -> None:
    write_shard("in/1.tar", {"10": {"source.png": png(0)[:5000]}, "11": {"source.png": png(1)}})
    with pytest.raises(DataError, match=r"1 of 6 samples cannot be used"):
        run(shards(), copy)
    assert len(run(shards(), copy, max_corrupt=0.5).records) == 2


def test_a_process_that_is_gone_is_one_line(
    shards: Callable[[], list[ShardJob]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("Connection closed by peer")

    module = "lbm_lora.inference.shards.predict.distributed"
    for name, fake in {
        "is_initialized": lambda: True,
        "new_group": lambda **_: object(),
        "get_world_size": lambda _: 2,
        "all_gather_object": lost,
    }.items():
        monkeypatch.setattr(f"{module}.{name}", fake)
    with pytest.raises(DataError, match=r"^another process of this run has ended\. Start it again"):
        run(shards(), copy)
