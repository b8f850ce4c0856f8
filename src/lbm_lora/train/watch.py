"""What happens between the steps of a run: log, validate, save, stop."""

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor

from lbm_lora.errors import ConfigError, QualityError
from lbm_lora.progress import Progress
from lbm_lora.signals import StopRequest
from lbm_lora.train.data import Batch
from lbm_lora.train.loggers import RunLog
from lbm_lora.train.meter import Meter
from lbm_lora.train.module import TrainingModule, drop_gathered
from lbm_lora.train.optim import Average, rate_factor
from lbm_lora.train.preview import Scores
from lbm_lora.train.run_plan import RunPlan
from lbm_lora.train.state import TrainState, Values, copied, optimizer_state, restore, save_state
from lbm_lora.train.validation import Validator


class RunWatch(Callback):
    """Follows a run and does what is due after each step.

    Attributes:
        step: optimizer steps that are done, those of earlier parts included.
        loss: mean of the last logged steps.
        scores: of the last validation.
        best_step: after which the validation was the best one.
        stopped_by: name of the signal that ended the run before its end.
    """

    def __init__(self, plan: RunPlan, progress: Progress, stop: StopRequest) -> None:
        self._plan = plan
        self._progress = progress
        self._stop = stop
        state = plan.state
        self.step = self._first = self._saved = state.step if state else 0
        self.loss = math.nan
        self.scores: Scores | None = None
        self.stopped_by = ""
        self._here = self._at_step = (state.epoch, state.batch) if state else (0, 0)
        self._best = state.best if state else None
        self.best_step = state.best_step if state else None
        self._validated = state.validated if state else -1
        self._average: Average | None = None
        self._log: RunLog | None = None
        self._meter = Meter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        plan, module = self._plan, _ours(pl_module)
        self._stop.listen()
        first = trainer.strategy.broadcast(self.step)
        if first != self.step:
            raise ConfigError(
                f"process {trainer.global_rank} goes on after step {self.step:,}, the first one after step {first:,}: "
                f"{plan.folder.path} must be one folder for all machines."
            )
        if plan.config.ema_decay is not None:
            self._average = Average(module.learning, plan.config.ema_decay)
        if plan.state is not None:
            average = self._average.values if self._average else None
            restore(plan.state, module.learning, trainer.optimizers[0], average)
        if trainer.is_global_zero:
            self._log = RunLog(plan.config, plan.folder, self.step)
        self._validate_if_due(trainer, module)
        self._progress.start(plan.total - self.step, "training")
        self._meter.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._take(outputs["loss"], cast(Batch, batch))
        step = self._first + trainer.global_step
        if step > self.step:
            self.step, self._at_step = step, self._here
            self._after_step(trainer, _ours(pl_module))
        if self._must_stop(trainer) and not trainer.should_stop:
            self.stopped_by = self._stop.asked or "another process"
            self._save(trainer, _ours(pl_module))
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._log is not None:
            self._log.close()

    def _take(self, loss: Tensor, batch: Batch) -> None:
        """Keep account of one forward pass."""
        epoch, done = self._here
        self._here = (epoch, done + 1) if batch.epoch == epoch else (batch.epoch, 1)
        self._meter.add(loss)
        if batch.skipped:
            self._plan.train.count(batch.skipped)

    def _after_step(self, trainer: Trainer, module: TrainingModule) -> None:
        config, is_last = self._plan.config, self.step >= self._plan.total
        if self._average is not None:
            self._average.update(module.learning, self.step - 1)
        self._progress.advance()
        if is_last or self.step % config.log_interval == 0:
            self._report(trainer, module)
        with self._meter.paused():
            self._validate_if_due(trainer, module)
            if is_last or self.step % config.save_interval == 0:
                self._save(trainer, module)
        trainer.should_stop = trainer.should_stop or is_last

    def _report(self, trainer: Trainer, module: TrainingModule) -> None:
        """One line and one row of the log; a loss that is no number any more ends the run."""
        assert module.gradient_norm is not None
        loss, seconds = self._meter.read()
        self.loss = float(trainer.strategy.reduce(loss, reduce_op="mean"))
        seconds *= self._plan.config.accumulate
        norm = float(cast(Any, module.gradient_norm))
        rate = self._plan.config.learning_rate * rate_factor(self._plan.config, self.step - 1, self._plan.total)
        if not math.isfinite(self.loss):
            raise QualityError(
                f"the loss is {self.loss} at step {self.step}: training has come apart. Lower learning_rate or "
                "gradient_clip; the last good save is in the folder."
            )
        self._progress.note(
            f"step {self.step:,} of {self._plan.total:,}: loss {self.loss:.5f}, gradient {norm:.3g}, learning rate "
            f"{rate:.3g}, {seconds:.2f} s a step"
        )
        if self._log is not None:
            values = {"loss": self.loss, "gradient_norm": norm, "learning_rate": rate, "seconds_per_step": seconds}
            self._log.metrics({f"train/{name}": value for name, value in values.items()}, self.step)

    def _must_stop(self, trainer: Trainer) -> bool:
        """Whether any process was asked to stop; all of them get the same answer."""
        return trainer.strategy.reduce_boolean_decision(bool(self._stop.asked), all=False)

    def _validate_if_due(self, trainer: Trainer, module: TrainingModule) -> None:
        """Every so many steps, at the first and at the last one; after a stop in the middle of it, once more."""
        plan, interval = self._plan, self._plan.config.validation_interval or self._plan.config.save_interval
        due = self.step % interval == 0 or self.step >= plan.total
        if plan.validator is None or not due or self._validated == self.step:
            return
        with self._averaged(module), trainer.precision_plugin.forward_context():
            made = plan.validator.run(
                module.step,
                rank=trainer.global_rank,
                world=trainer.world_size,
                stop=lambda: self._must_stop(trainer),
            )
        if made is not None:
            self._validated = self.step
            self._take_scores(trainer, module, *made)

    def _take_scores(self, trainer: Trainer, module: TrainingModule, scores: Scores, pictures: Image.Image) -> None:
        plan, self.scores = self._plan, scores
        self._progress.note(f"step {self.step:,}: validation of {scores.samples} pairs: {scores}")
        quality = scores.quality(plan.config.best_metric)
        if self._best is None or quality > self._best:
            self._best, self.best_step = quality, self.step
            values = self._result(module)
            if trainer.is_global_zero:
                plan.write(values, self.step, plan.folder.best)
        if self._log is not None:
            path = Validator.write_pictures(pictures, plan.folder.picture(self.step))
            self._log.metrics(scores.metrics(), self.step)
            self._log.picture(pictures, path, self.step)

    def _save(self, trainer: Trainer, module: TrainingModule) -> None:
        """The result of this step, and the state to go on from; gathering takes every process."""
        if self.step == self._saved:
            return
        plan = self._plan
        result, state = self._result(module), self._state(trainer, module)
        if trainer.is_global_zero:
            plan.folder.save_step(self.step, lambda path: plan.write(result, self.step, path), plan.config.keep_last)
            save_state(state, plan.folder.state)
        self._saved = self.step

    def _result(self, module: TrainingModule) -> Values:
        return copied(self._average.values if self._average else module.learning)

    def _state(self, trainer: Trainer, module: TrainingModule) -> TrainState:
        epoch, batch = self._at_step
        return TrainState(
            step=self.step,
            epoch=epoch,
            batch=batch,
            values=copied(module.learning),
            optimizer=optimizer_state(trainer.optimizers[0], module.learning),
            average=copied(self._average.values) if self._average else None,
            origins={str(name): (origin.down, origin.up) for name, origin in module.trainee.origins.items()},
            best=self._best,
            best_step=self.best_step,
            validated=self._validated,
            identity=self._plan.identity,
            config=self._plan.config.model_dump(mode="json"),
        )

    @contextmanager
    def _averaged(self, module: TrainingModule) -> Generator[None]:
        """The model in evaluation mode, with the average in place of the last weights where there is one."""
        held = (
            {name: parameter.detach().clone() for name, parameter in module.learning.items()} if self._average else {}
        )
        module.denoiser.eval()
        try:
            self._put(module, self._average.values if self._average else {})
            yield
        finally:
            drop_gathered(module.denoiser)
            self._put(module, held)
            module.denoiser.train()

    @torch.no_grad()
    def _put(self, module: TrainingModule, values: Values) -> None:
        for name, value in values.items():
            module.learning[name].copy_(value)


def _ours(module: LightningModule) -> TrainingModule:
    assert isinstance(module, TrainingModule)
    return module
