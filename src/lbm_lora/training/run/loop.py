"""The training loop: the gradients of a step, the step, then whatever is due: log, validate, save, stop."""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from lightning.fabric import Fabric
from PIL import Image

from lbm_lora.blocks import is_finite
from lbm_lora.errors import ConfigError, QualityError
from lbm_lora.imaging.tensors import NotFiniteError
from lbm_lora.late_files import spared
from lbm_lora.ownership import TRAINING_STATE
from lbm_lora.progress import Pace, Progress
from lbm_lora.regular_file import file_digest
from lbm_lora.result_watch import OwnFile, ResultWatch
from lbm_lora.signals import StopRequest
from lbm_lora.trainable.state import TrainState, Values, save_state
from lbm_lora.training.data import Batch, PairDataset, fill_latents, loader_of
from lbm_lora.training.run.learner import Learner, rate_factor
from lbm_lora.training.run.prepare import PreparedRun
from lbm_lora.training.run.resume import best_result_of, has_unscored_best, own_digest, results_of, was_cut_off
from lbm_lora.training.run.run_log import Meter, RunLog, step_line
from lbm_lora.training.run.trainee import trained_steps
from lbm_lora.training.run.validation import Scores, Validator


@dataclass
class Standing:
    """Position and metrics of a run.

    Attributes:
        step: completed optimizer steps, including earlier parts of the run.
        epoch, batch: the next batch of the data.
        best, best_step: the best metric so far (larger is better), and the step after which it was measured. A step
            without a metric: the best save so far, if there is one, is another validation's.
        validated: the last step after which a validation ran; -1 for none.
        loss: mean over the last logged steps; NaN before the first log line.
        scores: scores of the last validation.
        stopped_by: name of the signal that stopped the run early, else empty.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best: float | None = None
    best_step: int | None = None
    validated: int = -1
    loss: float = math.nan
    scores: Scores | None = None
    stopped_by: str = ""


def standing_of(state: TrainState | None) -> Standing:
    """Return the position at the start of a run, or where an earlier part ended."""
    if state is None:
        return Standing()
    return Standing(
        step=state.step,
        epoch=state.epoch,
        batch=state.batch,
        best=state.best,
        best_step=state.best_step,
        validated=state.validated,
    )


class TrainingLoop:
    """Run a prepared training to its end, or until a signal arrives.

    Args:
        fabric: its processes are started.
        stop: asked before each forward pass, and within a validation.
        check_folder: raises if the run no longer holds its folder; called before files are written to it.

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
    ) -> None:
        self.standing = standing_of(run.state)
        self._run, self._fabric, self._progress, self._stop = run, fabric, progress, stop
        self._check_folder = check_folder
        self._state_file, self._last, self._best = map(OwnFile, (run.folder.state, run.folder.last, run.folder.best))
        for file in (self._state_file, self._last, self._best):
            file.note()
        self._learner = Learner(run, fabric)
        self._log = RunLog(run.config, run.folder, run.done) if fabric.is_global_zero else None
        self._meter, self._pace, self._pictures = Meter(), Pace(0), ResultWatch()
        self._next = self.standing.epoch, self.standing.batch
        self._saved = None if was_cut_off(run.state, run.folder) else run.done
        self._saved_steps = run.state.saved_steps if run.state else ()
        self._lacks_score = run.state is not None and has_unscored_best(run.state, run.folder)
        self._results = {} if run.state is None else results_of(run.state, run.folder)
        self._best_result = None if run.state is None else best_result_of(run.state, run.folder)

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
        self._save_if_due()
        self._progress.start(run.total - standing.step, "training")
        self._pace = Pace(run.total - standing.step)
        self._meter.start()
        while standing.step < run.total and self._accumulate(batches):
            self._learner.take_step(standing.step)
            self._count_step()
            self._report_if_due()
            with self._meter.paused():
                self._validate_if_due()
                self._save_if_due()
        if standing.step < run.total:
            standing.stopped_by = self._stop.asked or "another process"
            self._save()
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
            raise self._diverged(f"the loss is {standing.loss}")
        self._progress.note(step_line(standing.step, total, standing.loss, self._pace))
        if self._log is not None:
            self._check_folder()  # a log goes by its path
            self._log.metrics({f"train/{name}": value for name, value in values.items()}, standing.step)

    def _diverged(self, what: str) -> QualityError:
        saved = (
            f"The last save is of step {self._saved:,}: {self._run.folder.last}."
            if self._saved
            else "Nothing was saved before."
        )
        return QualityError(
            f"{what} at step {self.standing.step}: training has diverged. Lower learning_rate or gradient_clip. {saved}"
        )

    def _validate_if_due(self) -> None:
        """Validate at the set interval and at the first and last step; repeat a validation that was interrupted."""
        run, standing, fabric = self._run, self.standing, self._fabric
        interval = run.config.validation_interval or run.config.save_interval
        is_repeated = self._lacks_score and standing.step == run.done
        is_due = standing.step % interval == 0 or standing.step >= run.total or is_repeated
        if run.validator is None or not is_due or standing.validated == standing.step:
            return
        try:
            with self._learner.evaluation():
                made = run.validator.run(
                    self._learner.loss, rank=fabric.global_rank, world=fabric.world_size, stop=self._must_stop
                )
        except NotFiniteError:
            raise self._diverged("a validation image has values that are not finite") from None
        if made is not None:
            standing.validated = standing.step
            self._take_scores(*made)

    def _take_scores(self, scores: Scores, images: Image.Image) -> None:
        run, standing = self._run, self.standing
        self._check_folder()
        standing.scores = scores
        self._progress.note(f"step {standing.step:,}: validation on {scores.samples} pairs: {scores}")
        values = self._result()
        self._save_before_validation()
        quality = scores.quality(run.config.best_metric)
        if standing.best is None and self._fabric.is_global_zero:
            self._keep_earlier_validation()
        if standing.best is None or quality > standing.best:
            standing.best, standing.best_step = quality, standing.step
            if self._fabric.is_global_zero:
                with self._best.written():
                    run.write(values, standing.step, run.folder.best)
                self._best_result = self._own_digest(run.folder.best)
        if self._log is not None:
            path = run.folder.grid(standing.step)
            if path.exists():
                self._pictures.before(path)
            Validator.write_grid(images, path)
            self._pictures.after(path)
            self._log.metrics(scores.metrics(), standing.step)
            self._log.grid(images, path, standing.step)

    def _keep_earlier_validation(self) -> None:
        """Give what another validation has left, which this one is going to replace, a name of its own."""
        if self.standing.best_step is None:
            return
        step = trained_steps(self._run.folder.best)
        if step is not None:
            self._run.folder.keep_best(step)
        self._run.folder.keep_grid(self.standing.step)

    def _save_before_validation(self) -> None:
        """Save a state from which the validation is repeated, so that none of its results is of a later step.

        Every process must call this.
        """
        state = replace(self._state(), saved_steps=self._saved_steps, validated=-1)
        if self._fabric.is_global_zero:
            self._write_state(state)

    def _write_state(self, state: TrainState) -> None:
        with self._state_file.written():  # another machine may have begun a run there, on a disk without locks
            save_state(state, self._state_file.path, mark=TRAINING_STATE)

    def _save_if_due(self) -> None:
        """Save at the set interval, at the last step, and at one whose save was cut off."""
        step = self.standing.step
        if step >= self._run.total or step % self._run.config.save_interval == 0 or step in self._saved_steps:
            self._save()

    def _save(self) -> None:
        """Write the result of this step and the state to resume from; every process must call this."""
        run, standing = self._run, self.standing
        if standing.step == self._saved:
            return
        result, state = self._result(), self._state()
        self._check_folder()
        if self._fabric.is_global_zero:  # the state first: without it, results are those of a run that has lost it
            saved = tuple(sorted({*self._saved_steps, standing.step}))
            self._write_state(replace(state, saved_steps=saved))
            path = run.folder.step_file(standing.step)
            # an earlier part has written it: only last.safetensors is missing
            is_there = path.exists() and file_digest(path) == self._results.get(standing.step)
            with self._last.written(), spared(path, lambda now: self._own_digest(now) is not None):
                self._saved_steps = run.folder.save_step(
                    standing.step,
                    lambda path: None if is_there else run.write(result, standing.step, path),
                    keep=run.config.keep_last,
                    saved=self._saved_steps,
                    is_own=lambda step, path: file_digest(path) == self._results.get(step),
                )
            digest = self._own_digest(path)
            self._results |= {} if digest is None else {standing.step: digest}
        self._saved = standing.step

    def _own_digest(self, path: Path) -> str | None:
        run = self._run
        return own_digest(path, run.config.model_dump(mode="json"), self.standing.step, run.part)

    def _result(self) -> Values:
        """Return the values to save. The loss of a step is that before its update, and so comes too late for them."""
        result = self._learner.result()
        if not all(is_finite(value) for value in result.values()):
            raise self._diverged("trained values are infinite or NaN")
        return result

    def _state(self) -> TrainState:
        run, standing = self._run, self.standing
        return TrainState(
            step=standing.step,
            epoch=standing.epoch,
            batch=standing.batch,
            **self._learner.state(),
            origins={str(name): (factors.down, factors.up) for name, factors in run.trainee.initial.items()},
            best=standing.best,
            best_step=standing.best_step,
            validated=standing.validated,
            identity=run.identity,
            part=run.part,
            earlier_parts=run.earlier_parts,
            config=run.config.model_dump(mode="json"),
            measured=run.measured,
            results=dict(self._results),
            best_result=self._best_result,
        )

    def _must_stop(self) -> bool:
        """Return whether any process was asked to stop; all of them get the same answer."""
        return self._fabric.strategy.reduce_boolean_decision(bool(self._stop.asked), all=False)
