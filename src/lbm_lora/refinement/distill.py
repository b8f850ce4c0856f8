"""Distill the tuned model's outputs into a LoRA's factors and dense deltas, in a short run.

An extraction chooses the factors of each layer as if the other layers were exact. Layers can compensate each other's
errors; this is what the LoRA learns here, at its given ranks. No pairs are needed: a point of the bridge goes into both
networks, and the loss is the batch mean of the logarithm of ||output - tuned||^2 / ||tuned||^2: in dB, so that the
worst images do not outweigh all others. Adam (Kingma and Ba, arXiv 1412.6980) has one learning rate per tensor. It is
relative to the root mean square of the tensor's values, which differs by orders of magnitude between layers, and to the
error of the given LoRA: the smaller the error, the smaller the remaining changes. The rate warms up over a few steps
and decays to 0 along half a cosine.

The stored file is what matters, so the LoRA is measured with its values rounded to the stored dtype, on held-out
images: at the start, a few times in between, and at the end. The best one is the result.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from lbm_lora.adapter import Adapter
from lbm_lora.errors import ConfigError, Option, QualityError
from lbm_lora.fidelity.answers import AnsweredPoint
from lbm_lora.fidelity.output_errors import OutputErrors
from lbm_lora.files import MARK
from lbm_lora.progress import SILENT, Progress, warn
from lbm_lora.refinement.images import shape_of
from lbm_lora.refinement.student import Student
from lbm_lora.training.checkpoint import (
    TrainState,
    Values,
    check_values,
    copied,
    load_state,
    optimizer_state,
    restore,
    save_state,
)

REFINEMENT_STATE = f"{MARK}: refinement"
"""The mark of the state from which a run goes on."""

_WARMUP = 10  # steps
_PARTS = 8  # parts of a run, with a measurement at the end of each
_EPS = 1e-15  # epsilon of Adam: the gradients of some tensors are far below the default of 1e-8
_INSTEAD = "Remove it to start again."
_LEAST = 1e-18  # squared relative errors below this count as zero


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """Settings for refining a LoRA.

    Attributes:
        learning_rate: rate of a tensor, relative to the root mean square of its values times the given LoRA's error.
    """

    steps: int
    batch_size: int
    learning_rate: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class DistillResult:
    """Errors of the given LoRA and of the best one, both as stored in a file.

    Attributes:
        step: step after which the best one was measured; 0 is the given LoRA.
    """

    before: OutputErrors
    after: OutputErrors
    step: int

    @property
    def gain(self) -> float:
        """Reduction of the typical error, in dB."""
        return 20 * math.log10(self.before.typical / self.after.typical)


def distill(
    student: Student,
    learnt: Sequence[AnsweredPoint],
    held: Sequence[AnsweredPoint],
    settings: DistillSettings,
    *,
    state: Path | None,
    identity: Mapping[str, Any],
    progress: Progress = SILENT,
) -> tuple[Adapter, DistillResult]:
    """Refine a LoRA. An interrupted run resumes from its last measurement, with the same result.

    Args:
        held: points to measure on, from other images.
        state: file to which the run is saved at every measurement; the caller removes it at the end. None: not saved.

    Returns:
        The best LoRA, rounded to the stored dtype, and its errors.
    """
    saved = load_state(state) if state is not None and state.exists() else None
    if saved is not None and saved.identity != identity:
        saved = None
    progress.start(0, "measuring the LoRA")
    before = student.errors(held)
    best, done = _Best(after=before, step=0, values=copied(student.parameters)), 0
    optimizer = _optimizer(student, settings.learning_rate * before.typical)
    if saved is not None:
        assert state is not None
        check_values(saved, student.parameters, state)
        best, done = _checked(saved, student, settings.steps, state), saved.step
        restore(saved, student.parameters, optimizer, None)
    batches = list(_batches(learnt, settings))
    measured = {settings.steps * part // _PARTS for part in range(1, _PARTS + 1)}
    progress.start(settings.steps - done, "refining")
    for step in range(done, settings.steps):
        try:
            _take(student, batches[step], optimizer, settings, step)
        except QualityError as error:
            if not best.step:
                raise
            warn(*error.args, f" The LoRA of step {best.step}, the best so far, was kept.")
            break
        if step + 1 in measured:
            after = student.errors(held)
            if after.typical < best.after.typical:
                best = _Best(after=after, step=step + 1, values=copied(student.parameters))
            if state is not None:
                save_state(_state(student, optimizer, best, step + 1, identity), state, mark=REFINEMENT_STATE)
        progress.advance()
    return student.adapter(best.values), DistillResult(before=before, after=best.after, step=best.step)


@dataclass(frozen=True, kw_only=True)
class _Best:
    """Best LoRA so far: its errors, the step after which it was measured, and its parameters, fp32."""

    after: OutputErrors
    step: int
    values: Values


def refuse_another(path: Path, identity: Mapping[str, Any]) -> None:
    """Refuse the state of another run, which would be replaced."""
    if path.exists() and load_state(path).identity != identity:
        raise ConfigError(
            f"{path} is the state of an interrupted refinement with other inputs or settings. Run that one again to "
            "finish it, move the file, or use ",
            Option("overwrite"),
            " to replace it.",
        )


def _optimizer(student: Student, rate: float) -> Adam:
    scales = student.scales()
    groups = [
        {"params": [parameter], "lr": rate * scales[name], "highest": rate * scales[name]}
        for name, parameter in student.parameters.items()
    ]
    return Adam(groups, eps=_EPS)


def _batches(learnt: Sequence[AnsweredPoint], settings: DistillSettings) -> Iterator[list[AnsweredPoint]]:
    draw = torch.Generator().manual_seed(settings.seed)
    shares = torch.tensor([one.point.probability for one in learnt])
    drawn = torch.multinomial(shares, settings.steps * settings.batch_size, replacement=True, generator=draw)
    for indices in drawn.split(settings.batch_size):
        yield sorted((learnt[index] for index in indices.tolist()), key=shape_of)


def _take(
    student: Student, batch: Sequence[AnsweredPoint], optimizer: Optimizer, settings: DistillSettings, step: int
) -> None:
    for _, alike in groupby(batch, key=shape_of):
        loss = (student.losses(list(alike)) + _LEAST).log().sum() / len(batch)
        if not torch.isfinite(loss):
            raise QualityError(
                f"the loss is {loss.item()} at step {step + 1}: the learning rate {settings.learning_rate:g} is too "
                "high. Give a smaller one."
            )
        loss.backward()
    factor = min(1.0, (step + 1) / _WARMUP) * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    for group in optimizer.param_groups:
        group["lr"] = group["highest"] * factor
    optimizer.step()
    optimizer.zero_grad()


def _checked(saved: TrainState, student: Student, steps: int, path: Path) -> _Best:
    """Return a saved run's best LoRA, once the state is known to be one that `_state` can make."""
    places = saved.step == saved.batch == saved.validated and 0 < saved.step <= steps
    if not places or not 0 <= (saved.best_step or 0) <= saved.step:
        raise ConfigError(f"{path} is damaged: its step is {saved.step} of {steps}. {_INSTEAD}")
    errors = saved.config
    if errors.keys() != {"typical", "worst"} or not all(type(one) is float and one >= 0 for one in errors.values()):
        raise ConfigError(f"{path} is damaged: the errors of its LoRA are not two numbers. {_INSTEAD}")
    for name, parameter in student.parameters.items():
        kept = saved.optimizer.get(name)
        if kept is not None and not _is_of_adam(kept, parameter.shape):
            raise ConfigError(f"{path} is damaged: what Adam has kept for {name} does not fit it. {_INSTEAD}")
    if saved.average is None or saved.best_step is None:
        raise ConfigError(f"{path} is damaged: it holds no best LoRA. {_INSTEAD}")
    return _Best(after=OutputErrors(**errors), step=saved.best_step, values=saved.average)


def _is_of_adam(kept: Mapping[str, Any], shape: torch.Size) -> bool:
    sizes = {"step": (), "exp_avg": shape, "exp_avg_sq": shape}
    if kept.keys() != sizes.keys() or not all(isinstance(one, Tensor) for one in kept.values()):
        return False
    fits = all(kept[key].is_floating_point() and kept[key].shape == size for key, size in sizes.items())
    return fits and bool(kept["step"] >= 1) and bool((kept["exp_avg_sq"] >= 0).all())


def _state(student: Student, optimizer: Optimizer, best: _Best, step: int, identity: Mapping[str, Any]) -> TrainState:
    return TrainState(
        step=step,
        epoch=0,
        batch=step,
        values=copied(student.parameters),
        optimizer=optimizer_state(optimizer, student.parameters),
        average=best.values,
        origins={},
        best=best.after.typical,
        best_step=best.step,
        validated=step,
        identity=dict(identity),
        config=asdict(best.after),
    )
