"""Lightning's predict over whole shards: each process takes every n-th one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import distributed
from torch.utils.data import DataLoader

from lbm_lora.errors import ConfigError, DataError
from lbm_lora.infer.shards.plan import ShardJob, check_corrupt
from lbm_lora.infer.shards.record import ShardRecord
from lbm_lora.infer.shards.work import Dropped, ShardTask, Translate, translate_shard
from lbm_lora.progress import Progress
from lbm_lora.shards.corrupt import Skipped
from lbm_lora.signals import StopRequest

_PATIENCE = timedelta(days=30)
"""How long a process that is done waits for the others."""

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What has been done, by one process or by all.

    Attributes:
        records: name -> record of every shard that was written.
        stopped_by: the signal that came, else empty.
        error: what ended a process before its end, else empty.
    """

    records: Mapping[str, ShardRecord]
    stopped_by: str
    error: str = ""


def predict(
    trainer: Trainer,
    jobs: Sequence[ShardJob],
    task: ShardTask,
    load: Callable[[torch.device], Translate],
    *,
    max_corrupt: float,
    progress: Progress,
) -> Predicted:
    """Translate the shards that have no output yet, and wait for the other processes.

    SIGTERM and Ctrl-C drop the shard in work. An error in one process lets the others finish theirs: all get it then.

    Args:
        jobs: of all processes.
        load: puts the model on a device; called where there is something to do.
        max_corrupt: share of all samples that may be corrupt.

    Returns:
        What all processes have done together.

    Raises:
        ConfigError: the processes do not see the same outputs.
        DataError: too much is corrupt, or another process has ended.
        InputError: of the kind that fits.
    """
    with StopRequest() as stop:
        module = ShardModule(jobs, task, load, max_corrupt=max_corrupt, stop=stop, progress=progress)
        stop.listen()
        trainer.predict(module, return_predictions=False)
        stop.listen()  # Lightning has put back what was there before
        everything = module.gathered(module.predicted)
    if module.error is not None:
        raise module.error
    for rank, one in enumerate(everything):
        if one.error:
            raise DataError(f"process {rank} has ended: {one.error}")
    records = {name: record for one in everything for name, record in one.records.items()}
    check_corrupt(jobs, [item for record in records.values() for item in record.skipped], max_corrupt)
    return Predicted(records=records, stopped_by=next((one.stopped_by for one in everything if one.stopped_by), ""))


class ShardModule(LightningModule):
    """What Lightning runs in every process. It holds no parameters: the model is loaded on its device, as it is for
    single pictures, and so gives the same pictures.
    """

    def __init__(
        self,
        jobs: Sequence[ShardJob],
        task: ShardTask,
        load: Callable[[torch.device], Translate],
        *,
        max_corrupt: float,
        stop: StopRequest,
        progress: Progress,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer shards than processes
        self.error: Exception | None = None
        self._jobs = jobs
        self._task = task
        self._load = load
        self._translate: Translate | None = None
        self._max_corrupt = max_corrupt
        self._stop = stop
        self._progress = progress
        self._group: Any = None
        self._records: dict[str, ShardRecord] = {}
        self._skipped: list[Skipped] = []

    @property
    def predicted(self) -> Predicted:
        """What this process has done."""
        error = "" if self.error is None else f"{self.error}" or type(self.error).__name__
        return Predicted(records=self._records, stopped_by=self._stop.asked, error=error)

    def predict_dataloader(self) -> DataLoader[int]:
        """Numbers of this process's jobs. All processes must see the same ones to do."""
        if distributed.is_initialized():
            # a group of its own: the others' limit of time is made for steps, not for shards
            self._group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
        missing = [number for number, job in enumerate(self._jobs) if job.record is None]
        seen = self.gathered([self._jobs[number].name for number in missing])
        if any(names != seen[0] for names in seen):
            raise ConfigError(
                f"process {self.global_rank}: the processes do not find the same shards to be done. The folder of the "
                "results must be one for all machines."
            )
        mine = missing[self.global_rank :: self.trainer.world_size]
        if mine:
            self._progress.start(sum(self._jobs[number].samples for number in mine), "translating")
        return DataLoader(mine, batch_size=None)  # pyright: ignore[reportArgumentType]

    def on_predict_start(self) -> None:
        self._stop.listen()  # Lightning listens too, and would end the process

    def predict_step(self, batch: int, batch_idx: int) -> int:
        """Translate one shard; after an error or a stop nothing more is done."""
        if self.error is None and not self._stop.asked:
            job = self._jobs[batch]
            try:
                self._translate = self._translate or self._load(self.device)
                self._records[job.name] = translate_shard(self._translate, job, self._task, take=self._take)
            except Dropped:
                pass
            except Exception as error:  # whatever it is, the other processes must not wait for this one
                self.error = error
        return batch

    def gathered(self, value: Value) -> list[Value]:
        """The values of all processes, in their order; each of them must call this."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * distributed.get_world_size(self._group)
        distributed.all_gather_object(values, value, group=self._group)
        return values

    def _take(self, skipped: Skipped | None) -> None:
        """Count a sample of the shard in work."""
        if self._stop.asked:
            raise Dropped
        self._progress.advance()
        if skipped is not None:
            self._skipped.append(skipped)
            check_corrupt(self._jobs, self._skipped, self._max_corrupt)
