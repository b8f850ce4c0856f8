"""One shard through a model that only inverts: names, bytes, what is left out, and that nothing half done is left."""

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image, ImageOps

from lbm_lora.errors import DataError, ImageError, OutputError
from lbm_lora.file_plan import FilePlan
from lbm_lora.inference.shards import translate_shard as module
from lbm_lora.inference.shards.shard_jobs import ShardJob, ShardKeys, plan_shards
from lbm_lora.inference.shards.shard_record import ShardRecord, contents_of, read_record, write_record
from lbm_lora.inference.shards.translate_shard import Dropped, ShardTask, Translate, translate_shard
from lbm_lora.result_watch import ResultWatch
from lbm_lora.shards.samples import Skipped

Png = Callable[..., bytes]


SOURCE = ShardKeys()


def invert(source: Image.Image, mask: Image.Image | None) -> Image.Image:
    made = ImageOps.invert(source)
    return Image.composite(made, source, mask) if mask else made


def job_of(shard: Path, output: Path, keys: ShardKeys = SOURCE) -> ShardJob:
    (job,) = plan_shards([str(shard)], output.parent, keys, cache_dir=None, files=FilePlan())
    return job


def translated(
    job: ShardJob,
    *,
    keys: ShardKeys = SOURCE,
    take: Callable[[Skipped | None], None] = lambda _: None,
    translate: Translate = invert,
    kind: str = "png",
) -> ShardRecord:
    return translate_shard(
        translate, job, ShardTask(keys=keys, format=kind, settings={"seed": 0}), take=take, watch=ResultWatch()
    )


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
    assert record == read_record(tmp_path / "out/a.tar")


@pytest.mark.parametrize(("kind", "name"), [("jpg", "JPEG"), ("webp", "WEBP")])
def test_formats(tmp_path: Path, png: Png, write_shard: Callable[..., Path], kind: str, name: str) -> None:
    translated(job_of(write_shard("in/a.tar", {"000": {"source.png": png()}}), tmp_path / "out/a.tar"), kind=kind)
    made = members(tmp_path / "out/a.tar")
    assert Image.open(io.BytesIO(made[f"000.output.{kind}"])).format == name


def test_bytes_depend_on_the_shard_alone(tmp_path: Path, png: Png, write_shard: Callable[..., Path]) -> None:
    shard = write_shard("in/a.tar", {"000": {"source.png": png()}})
    for folder in ("one", "two"):
        translated(job_of(shard, tmp_path / folder / "a.tar"))
    assert (tmp_path / "one/a.tar").read_bytes() == (tmp_path / "two/a.tar").read_bytes()
    with tarfile.open(tmp_path / "one/a.tar") as tar:
        assert [(info.mtime, info.uname, info.uid, info.mode) for info in tar] == [(0, "", 0, 0o644)]


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
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_shard_that_is_not_the_planned_one_any_more(
    tmp_path: Path, png: Png, write_shard: Callable[..., Path], *, is_gone: bool
) -> None:
    shard = write_shard("in/a.tar", {"000": {"source.png": png(0)}, "001": {"source.png": png(1)}})
    other = write_shard("other/a.tar", {"000": {"source.png": png(2)}, "001": {"source.png": png(3)}})
    job = job_of(shard, tmp_path / "out/a.tar")

    def exchange(skipped: Skipped | None) -> None:
        shard.unlink(missing_ok=True)
        if not is_gone:
            shutil.copy(other, shard)

    with pytest.raises(
        DataError, match=r"in/a\.tar (cannot be read: No such file|was replaced while it was translated)"
    ):
        translated(job, take=exchange)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_result_that_is_not_finite_ends_the_work(tmp_path: Path, png: Png, write_shard: Callable[..., Path]) -> None:
    def fail(_: object, __: object) -> Image.Image:
        raise ImageError("the model's output holds 3 non-finite values")

    job = job_of(write_shard("in/a.tar", {"0": {"source.png": png()}}), tmp_path / "out/a.tar")
    with pytest.raises(ImageError, match="non-finite"):
        translated(job, translate=fail)
    assert not (tmp_path / "out").exists()


def test_a_file_that_appears_between_the_record_and_the_results_stays(
    tmp_path: Path, png: Png, write_shard: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out/a.tar"
    job = job_of(write_shard("in/a.tar", {"0": {"source.png": png()}}), output)

    def write_late(record: ShardRecord, path: Path) -> None:
        write_record(record, path)
        output.write_text("theirs")

    monkeypatch.setattr(module, "write_record", write_late)
    with pytest.raises(OutputError, match=r"a\.tar appeared while this command ran"):
        translated(job)
    assert output.read_text() == "theirs"
