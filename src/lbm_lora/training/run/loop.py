"""The training loop: the gradients of a step, the step, then whatever is due: log, validate, save, stop."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, cast

from lightning.fabric import Fabric
from PIL import Image

from lbm_lora.errors import ConfigError
from lbm_lora.imaging.tensors import NotFiniteError
from lbm_lora.progress import Pace, Progress
from lbm_lora.result_watch import ResultWatch
from lbm_lora.signals import StopRequest
from lbm_lora.training.data import Batch, PairDataset, fill_latents, loader_of
from lbm_lora.training.run.learner import Learner, rate_factor
from lbm_lora.training.run.prepare import PreparedRun
from lbm_lora.training.run.run_log import Meter, RunLog, step_line
from lbm_lora.training.run.saver import Saver
from lbm_lora.training.run.standing import standing_of
from lbm_lora.training.run.validation import Scores, Validator


class TrainingLoop:
    """Run a prepared training to its end, or until a signal arrives.

    Args:
        fabric: its processes are started.
        stop: asked before each forward pass, and within a validation.
        check_folder: raises if the run no longer holds its folder; called before files are written to it.
        on_save: called after each save of the state.

    Attributes:
        standing: where the run stands.
    """

    def __init__(
        self,
        run: PreparedRun,
        fabric: Fabric,
        progress: Progress,
        stop: StopRequest,
        check_folder: Callable[[], None],
        on_save: Callable[[], None],
    ) -> None:
        self.standing = standing_of(run.state)
        self._run, self._fabric, self._progress, self._stop = run, fabric, progress, stop
        self._check_folder = check_folder
        self._learner = Learner(run, fabric)
        self._saver = Saver(run, self._learner, self.standing, check_folder, on_save, writes=fabric.is_global_zero)
        self._log = RunLog(run.config, run.folder, run.done) if fabric.is_global_zero else None
        self._meter, self._pace, self._pictures = Meter(), Pace(0), ResultWatch()
        self._next = self.standing.epoch, self.standing.batch

    def train(self) -> None:
        """Train to the end, or until a signal arrives.

        Raises:
            ConfigError: the processes would not resume after the same step, or have other settings.
            DataError: too many pairs are corrupt.
            OutputError: the folder of the pictures is another one by now.
            QualityError: the loss is no longer finite.
        """
        with self._pictures, self._log or nullcontext():
            self._train()

    def _train(self) -> None:
        run, config, standing = self._run, self._run.config, self.standing
        draws = run.batches.through(config.max_epochs, epoch=standing.epoch, batch=standing.batch)
        pin = self._fabric.device.type == "cuda"
        batches = iter(loader_of(self._pairs(), draws, num_workers=config.num_workers, pin_memory=pin))
        self._stop.listen()
        self._check_start()
        self._validate_if_due()
        self._saver.save_if_due()
        self._progress.start(run.left, "training")
        self._pace = Pace(run.left)
        self._meter.start()
        while standing.step < run.total and self._accumulate(batches):
            self._learner.take_step(standing.step)
            self._count_step()
            self._report_if_due()
            with self._meter.paused():
                self._validate_if_due()
                self._saver.save_if_due()
        if standing.step < run.total:
            standing.stopped_by = self._stop.asked or "another process"
            self._saver.save()
        if self._log is not None:
            self._log.close()

    def _pairs(self) -> PairDataset:
        """Return the training pairs, with cached latents if requested: each process computes its share of them."""
        run, fabric = self._run, self._fabric
        if run.latents is None:
            return run.train
        fill_latents(
            run.train,
            run.latents,
            self._learner.loss.encode,
            num_workers=run.config.num_workers,
            rank=fabric.global_rank,
            world=fabric.world_size,
            progress=self._progress,
        )
        fabric.barrier()
        return run.train.with_latents(run.latents, images=run.config.pixel_loss_weight > 0)

    def _check_start(self) -> None:
        step, settings = self.standing.step, self._run.config.model_dump_json()
        first, firsts = self._fabric.broadcast((step, settings))
        if firsts != settings:
            raise ConfigError(
                f"process {self._fabric.global_rank} has other settings than process 0: the training file was changed "
                "while the run began. Start it again."
            )
        if first != step:
            raise ConfigError(
                f"process {self._fabric.global_rank} resumes after step {step:,}, but process 0 after step {first:,}: "
                f"{self._run.folder.path} must be the same folder on all machines."
            )

    def _accumulate(self, batches: Iterator[Batch]) -> bool:
        """Compute the gradients of one step; return False if a signal arrived before they were complete."""
        for index in range(self._run.config.accumulate):
            if self._must_stop():
                return False
            batch = next(batches)
            self._meter.add(self._learner.add_gradients(batch, step=self.standing.step, index=index))
            if batch.skipped:
                self._run.train.count(batch.skipped)
            epoch, done = self._next
            self._next = (epoch, done + 1) if batch.epoch == epoch else (batch.epoch, 1)
        return True

    def _count_step(self) -> None:
        self.standing.step += 1
        self.standing.epoch, self.standing.batch = self._next
        self._progress.advance()
        self._pace.advance()

    def _report_if_due(self) -> None:
        """Write a log line and a log row if due; a loss that is not finite ends the run."""
        config, standing, total = self._run.config, self.standing, self._run.total
        if standing.step < total and standing.step % config.log_interval:
            return
        loss, seconds = self._meter.read()
        standing.loss = float(cast(Any, self._fabric.all_reduce(loss, reduce_op="mean")))
        values = {
            "loss": standing.loss,
            "gradient_norm": float(self._learner.gradient_norm),
            "learning_rate": config.learning_rate * rate_factor(config, standing.step - 1, total),
            "seconds_per_step": seconds * config.accumulate,
        }
        if not math.isfinite(standing.loss):
            raise self._saver.diverged(f"the loss is {standing.loss}")
        self._progress.note(step_line(standing.step, total, standing.loss, self._pace))
        if self._log is not None:
            self._check_folder()  # a log goes by its path
            self._log.metrics({f"train/{name}": value for name, value in values.items()}, standing.step)

    def _validate_if_due(self) -> None:
        """Validate at the set interval and at the first and last step; repeat one whose score was not saved."""
        run, standing, fabric = self._run, self.standing, self._fabric
        interval = run.config.validation_interval or run.config.save_interval
        is_repeated = self._saver.lacks_score and standing.step == run.done
        is_due = standing.step % interval == 0 or standing.step >= run.total or is_repeated
        if run.validator is None or not is_due or standing.validated == standing.step:
            return
        try:
            with self._learner.evaluation():
                made = run.validator.run(
                    self._learner.loss, rank=fabric.global_rank, world=fabric.world_size, stop=self._must_stop
                )
        except NotFiniteError:
            raise self._saver.diverged("a validation image has values that are not finite") from None
        if made is not None:
            standing.validated = standing.step
            self._take_scores(*made)

    def _take_scores(self, scores: Scores, images: Image.Image) -> None:
        run, standing = self._run, self.standing
        self._check_folder()
        standing.scores = scores
        self._progress.note(f"step {standing.step:,}: validation on {scores.samples} pairs: {scores}")
        result = self._saver.result()
        self._saver.save_before_validation()
        quality = scores.quality(run.config.best_metric)
        if standing.best is None:
            self._saver.keep_earlier_validation()
        if standing.best is None or quality > standing.best:
            standing.best, standing.best_step = quality, standing.step
            self._saver.save_best(result)
        self._saver.save_scores()
        if self._log is not None:
            path = run.folder.grid(standing.step)
            if path.exists():
                self._pictures.before(path)
            else:
                self._pictures.forget(path.parent)  # which may have been tidied away: this one replaces nothing
            Validator.write_grid(images, path)
            self._pictures.after(path)
            self._log.metrics(scores.metrics(), standing.step)
            self._log.grid(images, path, standing.step)

    def _must_stop(self) -> bool:
        """Return whether any process was asked to stop; all of them get the same answer."""
        return self._fabric.strategy.reduce_boolean_decision(bool(self._stop.asked), all=False)
