"""Shards into shards: what is read and written, one shard through a model that inverts, and what a process does."""

import gzip
import io
import json
import os
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, cast

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from lbm_lora.errors import ConfigError, DataError, OutputError
from lbm_lora.files import Outputs
from lbm_lora.inference.shards import (
    Dropped,
    Predicted,
    ShardJob,
    ShardKeys,
    ShardRecord,
    ShardTask,
    Translate,
    check_corrupt,
    check_settings,
    contents_of,
    finished_record,
    plan_shards,
    predict,
    translate_shard,
    write_record,
)
from lbm_lora.progress import Silent
from lbm_lora.shards.samples import ENDS, Skipped
from lbm_lora.training.launch import open_fabric

Png = Callable[..., bytes]


SOURCE = ShardKeys()


SAMPLES = {"000": {"source.png": b"1"}, "001": {"source.png": b"22", "mask.png": b"3"}}


def plan(folder: Path, *patterns: str | Path, keys: ShardKeys = SOURCE, **changes: Any) -> list[ShardJob]:
    options: dict[str, Any] = {"cache_dir": None, "files": Outputs(overwrite=changes.pop("overwrite", False))}
    return plan_shards([str(pattern) for pattern in patterns], folder, keys, **options | changes)


def test_each_shard_has_an_output_of_its_name(tmp_path: Path, write_shard: Callable[..., Path]) -> None:
    for number in range(3):
        write_shard(f"in/{number:03d}.tar", SAMPLES)
    jobs = plan(tmp_path / "out", f"{tmp_path}/in/{{000..002}}.tar")
    assert [job.output for job in jobs] == [tmp_path / "out" / f"{number:03d}.tar" for number in range(3)]
    assert [(job.samples, job.skipped, job.record) for job in jobs] == [(2, (), None)] * 3
    assert not (tmp_path / "out").exists()


def test_what_headers_say_is_counted(tmp_path: Path, write_shard: Callable[..., Path]) -> None:
    shard = write_shard("in/a.tar", SAMPLES)
    (job,) = plan(tmp_path, shard, keys=ShardKeys(mask="mask.png"))
    assert job.skipped == (Skipped("a.tar/000", "no mask.png, only source.png"),)
    shard.write_bytes(shard.read_bytes()[:1024])
    (job,) = plan(tmp_path, shard)
    assert job.samples == 2  # the lost end counts as one
    assert job.skipped == (Skipped("a.tar", "the shard ends or is damaged at byte 1024; the rest is lost"),)


def test_too_much_is_refused(tmp_path: Path, write_shard: Callable[..., Path]) -> None:
    write_shard("in/a.tar", SAMPLES)
    write_shard("in/b.tar", {"000": {"target.png": b"1"}, **{f"1{i}": {"source.png": b"2"} for i in range(7)}})
    jobs = plan(tmp_path, f"{tmp_path}/in/{{a,b}}.tar")
    check_corrupt(jobs, (), 0.1)
    with pytest.raises(DataError, match=r"^a\.tar and 1 more: 1 of 10 samples cannot be used \(10\.0 %\): b\.tar/000"):
        check_corrupt(jobs, (), 0.05)
    check_corrupt(jobs, [Skipped("b.tar/000", "once more")], 0.1)
    with pytest.raises(DataError, match="2 of 10 samples"):
        check_corrupt(jobs, [Skipped("a.tar/001", "cannot be decoded")], 0.1)


def finished(job: ShardJob, data: bytes = b"results") -> ShardRecord:
    """Write an output with its record."""
    job.output.parent.mkdir(exist_ok=True)
    job.output.write_bytes(data)
    record = ShardRecord(source=job.digest, images=2, skipped=(), result=contents_of(job.output))
    write_record(record, job.output)
    return record


def test_an_output_that_is_there_is_known_by_its_record(tmp_path: Path, write_shard: Callable[..., Path]) -> None:
    shard = write_shard("in/a.tar", SAMPLES)
    (job,) = plan(tmp_path / "out", shard)
    record = finished(job)
    for overwrite in (False, True):
        assert plan(tmp_path / "out", shard, overwrite=overwrite)[0].record == record
    job.output.unlink()
    assert plan(tmp_path / "out", shard)[0].record is None
    finished(job)
    write_shard("in/a.tar", {**SAMPLES, "002": {"source.png": b"4"}})
    with pytest.raises(ConfigError, match=r"out/a\.tar was made from another shard than .*in/a\.tar"):
        plan(tmp_path / "out", shard)


def test_inputs_are_not_overwritten(tmp_path: Path, write_shard: Callable[..., Path]) -> None:
    shard = write_shard("in/a.tar", SAMPLES)
    with pytest.raises(OutputError, match=r"a\.tar is an input of this command"):
        plan(tmp_path / "in", shard)
    packed = tmp_path / "packed" / "a.tar"  # its content tells that it is compressed, not its name
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(shard.read_bytes()))
    with pytest.raises(OutputError, match=r"packed/a\.tar is an input of this command"):
        plan(packed.parent, packed, cache_dir=tmp_path / "cache", overwrite=True)
    (tmp_path / "b.tar").write_bytes(b"")
    with pytest.raises(OutputError, match=r"b\.tar receives shards, so it must be a folder"):
        plan(tmp_path / "b.tar", shard)


def test_what_differs_is_named_with_both_values(tmp_path: Path) -> None:
    (tmp_path / "infer.json").write_text(json.dumps({"seed": 0, "mode": "fused", "size": None}))
    with pytest.raises(ConfigError, match=r"seed was 0 and is now 1, size was None and is now 64\. Translate into"):
        check_settings(tmp_path, {"seed": 1, "mode": "fused", "size": 64})


def test_results_without_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar.json").write_text('{"mine": true}')
    check_settings(tmp_path, {"seed": 0})
    write_record(ShardRecord(source="s", images=1, skipped=(), result=None), tmp_path / "b.tar")
    with pytest.raises(ConfigError, match=r"holds results, but no infer\.json records how they were made"):
        check_settings(tmp_path, {"seed": 0})


def invert(source: Image.Image, mask: Image.Image | None) -> Image.Image:
    made = ImageOps.invert(source)
    return Image.composite(made, source, mask) if mask else made


def job_of(shard: Path, output: Path, keys: ShardKeys = SOURCE) -> ShardJob:
    (job,) = plan_shards([str(shard)], output.parent, keys, cache_dir=None, files=Outputs())
    return job


def translated(
    job: ShardJob,
    *,
    keys: ShardKeys = SOURCE,
    take: Callable[[Skipped | None], None] = lambda _: None,
    translate: Translate = invert,
    kind: str = "png",
) -> ShardRecord:
    return translate_shard(translate, job, ShardTask(keys=keys, format=kind, settings={"seed": 0}), take=take)


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {info.name: cast(Any, tar.extractfile(info)).read() for info in tar}


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_every_sample_gives_a_member_of_its_key(tmp_path: Path, png: Png, write_shard: Callable[..., Path]) -> None:
    samples = {"000": {"source.png": png(0), "target.png": png(1)}, "sub/a-1": {"source.jpg": png(2, kind="JPEG")}}
    shard = write_shard("in/a.tar", samples)
    job = job_of(shard, tmp_path / "out/a.tar")
    record = translated(job)
    made = members(tmp_path / "out/a.tar")
    assert list(made) == ["000.output.png", "sub/a-1.output.png"]
    assert np.array_equal(pixels(made["000.output.png"]), 255 - pixels(png(0)))
    result = contents_of(tmp_path / "out/a.tar")
    assert record == ShardRecord(source=job.digest, images=2, skipped=(), result=result)
    assert record == finished_record(tmp_path / "out/a.tar")


def test_what_cannot_be_used_is_named_and_left_out(tmp_path: Path, png: Png, write_shard: Callable[..., Path]) -> None:
    keys = ShardKeys(mask="mask.png")
    wide = png(1, (64, 32))
    samples = {
        "good": {"source.png": png(), "mask.png": png(1)},
        "none": {"target.png": png(), "mask.png": png(1)},
        "bare": {"source.png": png()},
        "torn": {"source.png": png()[:3000], "mask.png": png(1)},
        "wide": {"source.png": png(), "mask.png": wide},
    }
    shard = write_shard("in/a.tar", samples)
    data = shard.read_bytes()
    shard.write_bytes(data.rstrip(b"\0"))  # without the end of the archive
    taken: list[Skipped | None] = []
    record = translated(job_of(shard, tmp_path / "out/a.tar", keys), keys=keys, take=taken.append)
    assert list(members(tmp_path / "out/a.tar")) == ["good.output.png"]
    assert [item.key for item in record.skipped] == [*(f"a.tar/{key}" for key in list(samples)[1:]), "a.tar"]
    assert [item.reason.split(":")[0] for item in record.skipped[:4]] == [
        "no source.jpg, only mask.png, target.png",
        "no mask.png, only source.png",
        "cannot be decoded",
        "the mask is 64x32, but its image 64x64",
    ]
    assert taken == [None, *record.skipped]


def test_masks_keep_the_source(tmp_path: Path, png: Png, write_shard: Callable[..., Path]) -> None:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    file = io.BytesIO()
    mask.save(file, "PNG")
    keys = ShardKeys(mask="mask.png")
    shard = write_shard("in/a.tar", {"0": {"source.png": png(), "mask.png": file.getvalue()}})
    translated(job_of(shard, tmp_path / "out/a.tar", keys), keys=keys)
    made = pixels(members(tmp_path / "out/a.tar")["0.output.png"])
    assert np.array_equal(made[:, 32:], pixels(png())[:, 32:])
    assert np.array_equal(made[:, :32], 255 - pixels(png())[:, :32])


def test_a_shard_that_is_dropped_leaves_nothing(tmp_path: Path, png: Png, write_shard: Callable[..., Path]) -> None:
    job = job_of(write_shard("in/a.tar", {f"{i}": {"source.png": png(i)} for i in range(3)}), tmp_path / "out/a.tar")
    count = 0

    def take(_: Skipped | None) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise Dropped

    with pytest.raises(Dropped):
        translated(job, take=take)
    assert not list(tmp_path.glob("out/*"))


KEYS = ShardKeys(source="source.png")


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
    return lambda: plan_shards(patterns, tmp_path / "out", KEYS, cache_dir=None, files=Outputs())


def run(jobs: list[ShardJob], translate: Translate, steps: Steps | None = None, max_corrupt: float = 0.0) -> Predicted:
    fabric = open_fabric("cpu", 1, 1, "auto")

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


def test_a_signal_drops_the_shard_in_work(shards: Callable[[], list[ShardJob]], tmp_path: Path) -> None:
    def stopping(source: Image.Image, _: Image.Image | None) -> Image.Image:
        if (tmp_path / "out/0.tar").exists():
            os.kill(os.getpid(), signal.SIGTERM)
        return source

    made = run(shards(), stopping)
    assert (list(made.records), made.stopped_by) == (["0.tar"], "SIGTERM")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.tar", "0.tar.json", "infer.json"]


def test_a_process_that_is_gone_is_one_line(
    shards: Callable[[], list[ShardJob]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("Connection closed by peer")

    module = "lbm_lora.inference.shards.distributed"
    for name, fake in {
        "is_initialized": lambda: True,
        "new_group": lambda **_: object(),
        "get_world_size": lambda _: 2,
        "all_gather_object": lost,
    }.items():
        monkeypatch.setattr(f"{module}.{name}", fake)
    with pytest.raises(DataError, match=r"^another process of this run has ended\. Start it again"):
        run(shards(), copy)


def test_a_result_is_known_by_its_ends_and_a_damaged_record_is_none(tmp_path: Path) -> None:
    output = tmp_path / "a.tar"
    output.write_bytes(bytes(range(256)) * 1024)
    record = ShardRecord(source="a", images=3, skipped=(Skipped("a/1", "no x"),), result=contents_of(output))
    write_record(record, output)
    assert finished_record(output) == record
    data = output.read_bytes()
    for at in (0, ENDS - 1, len(data) - ENDS, len(data) - 2):
        output.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert finished_record(output) is None
    output.write_bytes(data)
    for text in ("", "[]", '{"source": "abc"}', '{"source": "a", "pictures": 1, "skipped": [1]}'):
        (tmp_path / "a.tar.json").write_text(text)
        assert finished_record(output) is None
    output.unlink()
    os.mkfifo(output)
    write_record(record, output)
    assert finished_record(output) is None


def test_an_output_that_is_not_the_recorded_one_is_ours_or_needs_overwrite(
    tmp_path: Path, write_shard: Callable[..., Path]
) -> None:
    shard = write_shard("in/a.tar", SAMPLES)
    (job,) = plan(tmp_path / "out", shard)
    finished(job)
    job.output.write_bytes(b"theirs")
    with pytest.raises(OutputError, match=r"out/a\.tar exists, and lbm-lora did not write it"):
        plan(tmp_path / "out", shard)
    assert plan(tmp_path / "out", shard, overwrite=True)[0].record is None
    job.output.write_bytes(b"made by lbm-lora: result")
    assert plan(tmp_path / "out", shard)[0].record is None
