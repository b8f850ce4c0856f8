"""Save a run's results and the state to resume from, and keep track of which files in its folder are its own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lbm_lora.blocks import is_finite
from lbm_lora.errors import QualityError
from lbm_lora.late_files import spared
from lbm_lora.own_file import OwnFile
from lbm_lora.ownership import TRAINING_STATE
from lbm_lora.regular_file import file_digest
from lbm_lora.trainable.state import TrainState, Values, save_state
from lbm_lora.training.run.learner import Learner
from lbm_lora.training.run.prepare import PreparedRun
from lbm_lora.training.run.resume import best_result_of, has_unscored_best, own_digest, results_of, was_cut_off
from lbm_lora.training.run.standing import Standing
from lbm_lora.training.run.trainee import trained_steps


class Saver:
    """Save a run's results and state; a file that is not the run's stays.

    Every process must have one, and call its methods alike: state and results are gathered from all of them.

    Args:
        writes: whether this process writes the files.
        check_folder: raises if the run no longer holds its folder; called before files are written to it.
        on_save: called after each save of the state.

    Attributes:
        lacks_score: whether the best result that is there has not been scored; see `has_unscored_best`.
    """

    def __init__(
        self,
        run: PreparedRun,
        learner: Learner,
        standing: Standing,
        check_folder: Callable[[], None],
        on_save: Callable[[], None],
        *,
        writes: bool,
    ) -> None:
        self._run, self._learner, self._standing = run, learner, standing
        self._check_folder, self._on_save, self._writes = check_folder, on_save, writes
        self._state_file, self._last, self._best = map(OwnFile, (run.folder.state, run.folder.last, run.folder.best))
        for file in (self._state_file, self._last, self._best):
            file.note()
        state, folder = run.state, run.folder
        self._saved = None if was_cut_off(state, folder) else run.done
        self._saved_steps = () if state is None else state.saved_steps
        self._results = {} if state is None else results_of(state, folder)
        self._best_result = None if state is None else best_result_of(state, run.config, folder)
        self.lacks_score = state is not None and has_unscored_best(state, folder)

    def save_if_due(self) -> None:
        """Save at the set interval, at the last step, and at one whose save was cut off."""
        step = self._standing.step
        if step >= self._run.total or step % self._run.config.save_interval == 0 or step in self._saved_steps:
            self.save()

    def save(self) -> None:
        """Write the result of this step and the state to resume from.

        Raises:
            QualityError: trained values are not finite.
        """
        run, step = self._run, self._standing.step
        if step == self._saved:
            return
        result, state = self.result(), self._state()
        self._check_folder()
        if self._writes:  # the state first: without it, results are those of a run that has lost it
            self._write_state(replace(state, saved_steps=tuple(sorted({*self._saved_steps, step}))))
            path = run.folder.step_file(step)
            # an earlier part has written it: only last.safetensors is missing
            is_there = path.exists() and file_digest(path) == self._results.get(step)

            def write(target: Path) -> None:
                if target != path or not is_there:
                    run.write(result, step, target)

            with self._last.written(), spared(path, lambda now: self._own_digest(now) is not None):
                run.folder.save_step(step, write)
            self._saved_steps = run.folder.keep_newest(
                run.config.keep_last,
                {*self._saved_steps, step},
                is_own=lambda step, path: file_digest(path) == self._results.get(step),
            )
            digest = self._own_digest(path)
            self._results |= {} if digest is None else {step: digest}
        self._saved = step

    def save_before_validation(self) -> None:
        """Save a state from which the validation is repeated, so that none of its results is of a later step."""
        state = replace(self._state(), saved_steps=self._saved_steps, validated=-1)
        if self._writes:
            self._write_state(state)

    def save_scores(self) -> None:
        """Save what a validation of a step has measured whose save is complete: none follows it."""
        if self._standing.step == self._saved:
            state = replace(self._state(), saved_steps=self._saved_steps)
            if self._writes:
                self._write_state(state)

    def save_best(self, result: Values) -> None:
        """Write the result of this step as the best one."""
        if self._writes:
            with self._best.written():
                self._run.write(result, self._standing.step, self._best.path)
            self._best_result = self._own_digest(self._best.path)

    def keep_earlier_validation(self) -> None:
        """Give what another validation has left, which this one is going to replace, a name of its own."""
        if not self._writes or self._standing.best_step is None:
            return
        step = trained_steps(self._best.path)
        if step is not None:
            self._run.folder.keep_best(step)
        self._run.folder.keep_grid(self._standing.step)

    def result(self) -> Values:
        """Return the values to save. The loss of a step is that before its update, and so comes too late for them.

        Raises:
            QualityError: they are not finite.
        """
        result = self._learner.result()
        if not all(is_finite(value) for value in result.values()):
            raise self.diverged("trained values are infinite or NaN")
        return result

    def diverged(self, what: str) -> QualityError:
        """Return the error of a run that has diverged, which names the last save."""
        saved = (
            f"The last save is of step {self._saved:,}: {self._last.path}."
            if self._saved
            else "Nothing was saved before."
        )
        return QualityError(
            f"{what} at step {self._standing.step}: training has diverged. Lower learning_rate or gradient_clip. "
            f"{saved}"
        )

    def _write_state(self, state: TrainState) -> None:
        with self._state_file.written():  # another machine may have begun a run there, on a disk without locks
            save_state(state, self._state_file.path, mark=TRAINING_STATE)
        self._on_save()

    def _own_digest(self, path: Path) -> str | None:
        run = self._run
        return own_digest(path, run.config.model_dump(mode="json"), self._standing.step, run.part)

    def _state(self) -> TrainState:
        run, standing = self._run, self._standing
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
