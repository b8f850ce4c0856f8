"""The training loop: the gradients of a step, the step, then whatever is due: log, save, validate, stop."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from lightning.fabric import Fabric
from PIL import Image

from lbm_lora.blocks import is_finite
from lbm_lora.errors import ConfigError, QualityError
from lbm_lora.files import write_text
from lbm_lora.imaging.image_file import write_image
from lbm_lora.imaging.tensors import NotFiniteError
from lbm_lora.progress import Pace, Progress, as_clock
from lbm_lora.runtime import StopRequest
from lbm_lora.training.checkpoint import TRAINING_STATE, TrainState, Values, save_state
from lbm_lora.training.data.batches import fill_latents, loader_of
from lbm_lora.training.data.dataset import Batch, PairDataset
from lbm_lora.training.learner import Learner, rate_factor
from lbm_lora.training.prepare import PreparedRun
from lbm_lora.training.run_log import Meter, RunLog
from lbm_lora.training.settings import RUN_LINE
from lbm_lora.training.trainee import trained_steps
from lbm_lora.training.validation import SAMPLES, Scores


@dataclass
class Standing:
    """Position of a run, as in `TrainState`, and its last metrics: NaN and None before the first ones.

    `stopped_by` is the name of the signal that stopped it early, else empty.
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

    @property
    def position(self) -> dict[str, Any]:
        names = ("step", "epoch", "batch", "best", "best_step", "validated")
        return {name: getattr(self, name) for name in names}


def standing_of(state: TrainState | None) -> Standing:
    """Return the position at the start of a run, or where an earlier part ended."""
    return Standing() if state is None else Standing(**{name: getattr(state, name) for name in Standing().position})


def is_complete(run: PreparedRun) -> bool:
    """Return whether nothing is left of a run: no step, no validation, and no result of its last step."""
    is_scored = run.validator is None or run.state is None or run.state.validated == run.done
    return not run.left and is_scored and not _lacks_result(run)


def _lacks_result(run: PreparedRun) -> bool:
    """Return whether a run was killed between its last state and the result of that step."""
    is_here = run.folder.state.exists()  # else it resumes from another folder
    is_due = run.done >= run.total or run.done % run.config.save_interval == 0
    return run.done > 0 and is_here and is_due and trained_steps(run.folder.last) != run.done


class TrainingLoop:
    """Training of a prepared run, whose processes are started.

    Args:
        keeps_config: whether the configuration in the folder is the user's own, and stays.
    """

    def __init__(
        self, run: PreparedRun, fabric: Fabric, progress: Progress, stop: StopRequest, *, keeps_config: bool
    ) -> None:
        self.standing = standing_of(run.state)
        self._run, self._fabric, self._progress, self._stop = run, fabric, progress, stop
        self._writes, self._keeps_config = fabric.is_global_zero, keeps_config
        self._learner = Learner(run, fabric)
        self._log = RunLog(run.config, run.folder, run.done) if self._writes else None
        self._meter, self._pace = Meter(), Pace(0)
        self._next = self.standing.epoch, self.standing.batch
        self._saved = None if _lacks_result(run) else run.done

    def train(self) -> Standing:
        """Train to the end, or until a signal arrives."""
        run, config, standing = self._run, self._run.config, self.standing
        draws = run.batches.through(config.max_epochs, epoch=standing.epoch, batch=standing.batch)
        pin = self._fabric.device.type == "cuda"
        batches = iter(loader_of(self._pairs(), draws, num_workers=config.num_workers, pin_memory=pin))
        self._stop.listen()
        self._check_start()
        self._save_and_validate_if_due()
        self._progress.start(run.left, "training")
        self._pace = Pace(run.left)
        self._meter.start()
        while standing.step < run.total and self._accumulate(batches):
            self._learner.take_step(standing.step)
            standing.step += 1
            standing.epoch, standing.batch = self._next
            self._progress.advance()
            self._pace.advance()
            self._report_if_due()
            with self._meter.paused():
                self._save_and_validate_if_due()
        if standing.step < run.total:
            standing.stopped_by = self._stop.asked or "another process"
            if standing.step != self._saved:
                self._save(self._result())
        if self._log is not None:
            self._log.close()
        return standing

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
        first = self._fabric.broadcast(self.standing.step)
        if first != self.standing.step:
            raise ConfigError(
                f"process {self._fabric.global_rank} resumes after step {self.standing.step:,}, but process 0 after "
                f"step {first:,}: {self._run.folder.path} must be the same folder on all machines."
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

    def _report_if_due(self) -> None:
        config, standing, total = self._run.config, self.standing, self._run.total
        if standing.step < total and standing.step % config.log_interval:
            return
        loss, seconds = self._meter.read()
        standing.loss = float(cast(Any, self._fabric.all_reduce(loss, reduce_op="mean")))
        if not math.isfinite(standing.loss):
            raise self._diverged(f"the loss is {standing.loss}")
        left = "" if self._pace.left is None else f", {as_clock(self._pace.left)} left"
        self._progress.note(
            f"step {standing.step:,} of {total:,}: loss {standing.loss:.5f}, {as_clock(self._pace.elapsed)} "
            f"elapsed{left}"
        )
        if self._log is not None:
            values = {
                "train/loss": standing.loss,
                "train/gradient_norm": float(self._learner.gradient_norm),
                "train/learning_rate": config.learning_rate * rate_factor(config, standing.step - 1, total),
                "train/seconds_per_step": seconds * config.accumulate,
            }
            self._log.metrics(values, standing.step)

    def _save_and_validate_if_due(self) -> None:
        """Save at the set interval and at the last step; validate at its interval, at the first and the last step.

        A validation starts from a saved state: if it fails, no step is lost.
        """
        run, step = self._run, self.standing.step
        is_last = step >= run.total
        interval = run.config.validation_interval or run.config.save_interval
        saves = (is_last or step % run.config.save_interval == 0) and step != self._saved
        validates = run.validator and (is_last or step % interval == 0) and self.standing.validated != step
        if not saves and not validates:
            return
        result = self._result()
        if saves:
            self._save(result)
        else:
            self._save_state()
        if validates:
            self._validate(result)

    def _result(self) -> Values:
        """Return the values to save. The loss of a step is that before its update, and so comes too late for them."""
        result = self._learner.result()
        if not all(is_finite(value) for value in result.values()):
            raise self._diverged("trained values are infinite or NaN")
        return result

    def _save(self, result: Values) -> None:
        run, step = self._run, self.standing.step
        self._save_state()
        if self._writes:
            run.folder.save(step, run.write, result, keep=run.config.keep_last, again=step == run.done)
        self._saved = step

    def _save_state(self) -> None:
        """Save the state to resume from, and at first the configuration; every process must call this."""
        run = self._run
        config = run.config.model_dump(mode="json")
        state = TrainState(
            **self.standing.position,
            **self._learner.state(),
            origins={str(name): (factors.down, factors.up) for name, factors in run.trainee.initial.items()},
            identity=run.identity,
            config=config,
            part=run.part,
            measured=run.measured,
        )
        if self._writes:
            save_state(state, run.folder.state, mark=TRAINING_STATE)
            if not self._keeps_config:
                write_text(run.folder.config, f"{RUN_LINE}{run.config.to_yaml()}")
        self._keeps_config = True

    def _validate(self, result: Values) -> None:
        """Validate the values to save, unless a signal arrives meanwhile; keep the best ones and the scores."""
        run, standing, fabric = self._run, self.standing, self._fabric
        assert run.validator is not None
        try:
            with self._learner.evaluation():
                made = run.validator.run(
                    self._learner.loss, rank=fabric.global_rank, world=fabric.world_size, stop=self._must_stop
                )
        except NotFiniteError:
            raise self._diverged("a validation image has values that are not finite") from None
        if made is None:
            return
        standing.scores, images = made
        standing.validated = standing.step
        self._progress.note(f"step {standing.step:,}: validation on {standing.scores.samples} pairs: {standing.scores}")
        self._keep_if_best(standing.scores.quality(run.config.best_metric), result)
        self._save_state()
        if self._log is not None:
            self._log_validation(self._log, standing.scores, images)

    def _keep_if_best(self, quality: float, result: Values) -> None:
        run, standing = self._run, self.standing
        if standing.best is not None and quality <= standing.best:
            return
        best = run.folder.best
        if self._writes:
            if standing.best is None and standing.best_step is not None and best.exists():  # by another validation
                best.replace(best.with_name(f"best-of-step-{trained_steps(best) or 0:06d}.safetensors"))
            run.write(result, standing.step, best)
        standing.best, standing.best_step = quality, standing.step

    def _log_validation(self, log: RunLog, scores: Scores, images: Image.Image) -> None:
        step, path = self.standing.step, self._run.folder.grid(self.standing.step)
        write_image(images, path, mark=SAMPLES)
        log.metrics(scores.metrics(), step)
        log.grid(images, path, step)

    def _diverged(self, what: str) -> QualityError:
        last = f"The last save is of step {self._saved:,}: {self._run.folder.last}."
        return QualityError(
            f"{what} at step {self.standing.step}: training has diverged. Lower learning_rate or gradient_clip. "
            f"{last if self._saved else 'Nothing was saved before.'}"
        )

    def _must_stop(self) -> bool:
        """Return whether any process was asked to stop; all of them get the same answer."""
        return self._fabric.strategy.reduce_boolean_decision(bool(self._stop.asked), all=False)
