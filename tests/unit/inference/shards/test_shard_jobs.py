"""Which shards are read and written: all of it before anything is computed."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lbm_lora.errors import ConfigError, DataError, OutputError
from lbm_lora.file_plan import FilePlan
from lbm_lora.inference.shards.shard_jobs import ShardJob, ShardKeys, check_corrupt, plan_shards
from lbm_lora.inference.shards.shard_record import ShardRecord, contents_of, write_record
from lbm_lora.late_files import check_late
from lbm_lora.shards.samples import Skipped

SOURCE = ShardKeys()
SAMPLES = {"000": {"source.png": b"1"}, "001": {"source.png": b"22", "mask.png": b"3"}}


def plan(folder: Path, *patterns: str | Path, keys: ShardKeys = SOURCE, **changes: Any) -> list[ShardJob]:
    options: dict[str, Any] = {"cache_dir": None, "files": FilePlan()}
    return plan_shards([str(pattern) for pattern in patterns], folder, keys, **options | changes)


def test_each_shard_has_an_output_of_its_name(tmp_path: Path, write_shard: Callable[..., Path]) -> None:
    for number in range(3):
        write_shard(f"in/{number:03d}.tar", SAMPLES)
    jobs = plan(tmp_path / "out", f"{tmp_path}/in/{{000..002}}.tar")
    assert [job.output for job in jobs] == [tmp_path / "out" / f"{number:03d}.tar" for number in range(3)]
    assert [(job.samples, job.skipped, job.record) for job in jobs] == [(2, (), None)] * 3
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_not_utf8_is_unusable(tmp_path: Path, write_shard: Callable[..., Path]) -> None:
    shard = write_shard("in/a.tar", SAMPLES | {"\udcff": {"source.png": b"4"}})
    (job,) = plan(tmp_path / "out", shard)
    assert [item.reason for item in job.skipped] == ["its name holds control characters, or is not UTF-8"]


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


def test_an_output_that_is_not_the_recorded_one_is_refused_or_made_anew(
    tmp_path: Path, write_shard: Callable[..., Path]
) -> None:
    shard = write_shard("in/a.tar", SAMPLES)
    (job,) = plan(tmp_path / "out", shard)
    finished(job)
    job.output.write_bytes(b"theirs")
    with pytest.raises(
        OutputError, match=r"out/a\.tar is not the result that a\.tar\.json records: it has 6 bytes, the"
    ):
        plan(tmp_path / "out", shard)
    assert plan(tmp_path / "out", shard, overwrite=True)[0].record is None


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
    with pytest.raises(OutputError, match="so it must be a folder"):
        plan(tmp_path / "b.tar", shard)


def test_two_shards_of_one_name_are_refused(tmp_path: Path, write_shard: Callable[..., Path]) -> None:
    one, other = write_shard("in/a.tar", SAMPLES), write_shard("more/a.tar", SAMPLES)
    with pytest.raises(OutputError, match=r"in/a\.tar and .*more/a\.tar would all be written to .*out/a\.tar"):
        plan(tmp_path / "out", one, other)


def test_compressed_shards_and_urls_are_copied(tmp_path: Path, write_shard: Callable[..., Path]) -> None:
    shard = write_shard("in/a.tar", SAMPLES)
    packed = tmp_path / "in/b.tar.gz"
    packed.write_bytes(gzip.compress(shard.read_bytes()))
    jobs = plan(tmp_path / "out", shard.as_uri(), packed, cache_dir=tmp_path / "cache")
    assert [job.name for job in jobs] == ["a.tar", "b.tar"]
    assert jobs[1].source.is_relative_to(tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"b\.tar\.gz is compressed\. Set cache_dir"):
        plan(tmp_path / "out", packed)


def test_a_pipe_has_no_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the shard 'pipe:cat a' has no file name"):
        plan(tmp_path / "out", "pipe:cat a")
    with pytest.raises(
        ConfigError, match=r"the record of the shard 'in/infer\.gz' would be called infer\.json, as the"
    ):
        plan(tmp_path / "out", "in/infer.gz")


def test_a_shard_with_other_contents_of_the_same_sizes_is_another_one(
    tmp_path: Path, write_shard: Callable[..., Path]
) -> None:
    shard, out = write_shard("in/a.tar", SAMPLES), tmp_path / "out"
    (job,) = plan(out, shard)
    finished(job)
    assert plan(out, shard)[0].record is not None
    write_shard("in/a.tar", SAMPLES | {"000": {"source.png": b"9"}})
    with pytest.raises(ConfigError, match=r"was made from another shard than"):
        plan(out, shard)


def test_a_file_that_appears_at_an_outputs_path_stays(tmp_path: Path, write_shard: Callable[..., Path]) -> None:
    output = tmp_path / "out" / "a.tar"
    for overwrite in (False, True):
        (job,) = plan(output.parent, write_shard("in/a.tar", SAMPLES), overwrite=overwrite)
        output.parent.mkdir(exist_ok=True)
        output.write_bytes(b"somebody's")
        with pytest.raises(OutputError, match=r"out/a\.tar appeared while this command ran"):
            check_late(job.output)
        output.unlink()


def test_overwrite_is_for_a_file_that_was_there_at_the_start(tmp_path: Path, write_shard: Callable[..., Path]) -> None:
    output = tmp_path / "out" / "a.tar"
    output.parent.mkdir()
    output.write_bytes(b"somebody's")
    (job,) = plan(output.parent, write_shard("in/a.tar", SAMPLES), overwrite=True)
    check_late(job.output)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_source_that_is_moved_to_an_outputs_path_stays(
    tmp_path: Path, write_shard: Callable[..., Path], *, overwrite: bool
) -> None:
    shard = write_shard("in/a.tar", SAMPLES)
    (job,) = plan(tmp_path / "out", shard, overwrite=overwrite)
    job.output.parent.mkdir()
    shard.rename(job.output)
    with pytest.raises(OutputError, match=r"out/a\.tar appeared while this command ran"):
        check_late(job.output)


def test_a_result_of_another_run_may_be_replaced_late_and_a_file_beside_its_record_not(
    tmp_path: Path, write_shard: Callable[..., Path]
) -> None:
    (job,) = plan(tmp_path / "out", write_shard("in/a.tar", SAMPLES))
    finished(job)
    check_late(job.output)
    job.output.write_bytes(b"theirs")
    with pytest.raises(OutputError, match=r"out/a\.tar appeared while this command ran"):
        check_late(job.output)
