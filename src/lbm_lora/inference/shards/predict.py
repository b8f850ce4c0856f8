"""Distribute the remaining shards among the processes: each takes every n-th one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning.fabric import Fabric
from torch import distributed

from lbm_lora.errors import ConfigError, DataError
from lbm_lora.inference.shards.shard_jobs import ShardJob, check_corrupt
from lbm_lora.inference.shards.shard_record import ShardRecord
from lbm_lora.inference.shards.translate_shard import Dropped, ShardTask, Translate, translate_shard
from lbm_lora.progress import Progress
from lbm_lora.result_watch import ResultWatch
from lbm_lora.shards.samples import Skipped
from lbm_lora.signals import StopRequest

_PATIENCE = timedelta(days=30)
"""Time that a finished process waits for the others."""

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Work done by one process or by all.

    Attributes:
        records: name -> record of every written shard.
        stopped_by: the received signal, else empty.
        error: the error that ended a process early, else empty.
    """

    records: Mapping[str, ShardRecord]
    stopped_by: str
    error: str = ""


def predict(
    fabric: Fabric,
    jobs: Sequence[ShardJob],
    task: ShardTask,
    load: Callable[[torch.device], Translate],
    *,
    max_corrupt: float,
    progress: Progress,
) -> Predicted:
    """Translate the shards without an output, and wait for the other processes, which are started here.

    SIGTERM and Ctrl-C drop the current shard. After an error in one process the others finish; then all raise it.

    Args:
        jobs: of all processes.
        load: puts the model on a device; called only if there is work.
        max_corrupt: share of all samples that may be corrupt.

    Returns:
        What all processes have done together.

    Raises:
        ConfigError: the processes do not see the same outputs.
        DataError: too much is corrupt, or another process has ended.
        InputError: any other invalid input, by kind.
    """
    fabric.launch()
    # a group of its own: the others' limit of time is made for steps, not for shards
    group = distributed.new_group(backend="gloo", timeout=_PATIENCE) if distributed.is_initialized() else None
    mine = _share(fabric, jobs, group)
    records: dict[str, ShardRecord] = {}
    error: Exception | None = None
    with StopRequest() as stop:
        stop.listen()
        take = _counter(jobs, max_corrupt, stop, progress)
        try:
            if mine:
                progress.start(sum(job.samples for job in mine), "translating")
                translate = load(fabric.device)
                with ResultWatch() as watch:
                    for job in mine:
                        records[job.name] = translate_shard(translate, job, task, take=take, watch=watch)
        except Dropped:
            pass
        except Exception as raised:  # whatever it is, the other processes must not wait for this one
            error = raised
        text = "" if error is None else f"{error}" or type(error).__name__
        everything = _gathered(Predicted(records=records, stopped_by=stop.asked, error=text), group)
    if error is not None:
        raise error
    for rank, one in enumerate(everything):
        if one.error:
            raise DataError(f"process {rank} has ended: {one.error}")
    records = {name: record for one in everything for name, record in one.records.items()}
    check_corrupt(jobs, [item for record in records.values() for item in record.skipped], max_corrupt)
    return Predicted(records=records, stopped_by=next((one.stopped_by for one in everything if one.stopped_by), ""))


def _share(fabric: Fabric, jobs: Sequence[ShardJob], group: Any) -> list[ShardJob]:
    """Return this process's part of the remaining shards. All processes must see the same ones."""
    left = [job for job in jobs if job.record is None]
    seen = _gathered([job.name for job in left], group)
    if any(names != seen[0] for names in seen):
        raise ConfigError(
            f"process {fabric.global_rank}: the processes disagree on the finished shards. All machines must share the "
            "folder of the results."
        )
    return left[fabric.global_rank :: fabric.world_size]


def _counter(
    jobs: Sequence[ShardJob], max_corrupt: float, stop: StopRequest, progress: Progress
) -> Callable[[Skipped | None], None]:
    """Counts the samples of this process, and drops the current shard after a signal or if too much is corrupt."""
    known: list[Skipped] = []

    def take(skipped: Skipped | None) -> None:
        if stop.asked:
            raise Dropped
        progress.advance()
        if skipped is not None:
            known.append(skipped)
            check_corrupt(jobs, known, max_corrupt)

    return take


def _gathered(value: Value, group: Any) -> list[Value]:
    """Return the values of all processes, in their order; each of them must call this.

    Raises:
        DataError: another process has ended.
    """
    if group is None:
        return [value]
    values: list[Any] = [None] * distributed.get_world_size(group)
    try:
        distributed.all_gather_object(values, value, group=group)
    except RuntimeError:  # torch's errors of a lost connection
        raise DataError("another process of this run has ended. Start it again: finished shards stay.") from None
    return values
