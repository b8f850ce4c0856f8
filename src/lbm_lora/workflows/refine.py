"""Train the factors of a LoRA on the tuned model's own outputs: the verb `refine`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lbm_lora.adapter import Adapter, load_adapter, precision, save_adapter
from lbm_lora.apply import adapted_to_lbm
from lbm_lora.checkpoint import Checkpoint, dtype_of, open_checkpoint
from lbm_lora.configs.refine import RefineConfig
from lbm_lora.errors import ConfigError, Option, QualityError, need_packages
from lbm_lora.factorize import PACKED
from lbm_lora.files import Outputs, together, written_bytes
from lbm_lora.hub import localized
from lbm_lora.progress import SILENT, Progress
from lbm_lora.workflows.files_beside import check_form
from lbm_lora.workflows.refine_record import identity_of, metadata_of, steps_of
from lbm_lora.workflows.twins import Twin, plan_twins, write_twins

if TYPE_CHECKING:
    from lbm_lora.fidelity.answers import AnsweredPoint
    from lbm_lora.fidelity.output_errors import OutputErrors
    from lbm_lora.model.build import LBMModel
    from lbm_lora.refinement.distill import DistillResult
    from lbm_lora.refinement.images import ImageSplit

_PACKAGES = ("peft",)


@dataclass(frozen=True, kw_only=True)
class RefineResult:
    """Written file, and the errors of the denoiser's output before and after."""

    adapter: Path
    nbytes: int
    before: "OutputErrors"
    after: "OutputErrors"
    gain: float
    """Decrease of the typical error in dB."""
    step: int
    """Step of the kept LoRA; 0: none was better than the given one, which was written."""
    steps: int
    images: int
    """Images that were trained on."""
    held: int
    """Images that were measured on."""
    twins: tuple[Twin, ...] = ()
    """The LoRA in other formats."""


def run(config: RefineConfig, progress: Progress = SILENT) -> RefineResult:
    """Refine a LoRA. An interrupted run resumes from its last measurement; its state is next to the output.

    Raises:
        MissingExtraError: a package of the train extra is not installed.
        InputError: invalid input of any kind, before a model is loaded.
        QualityError: the loss is no longer finite.
    """
    config = localized(config, progress)
    check(config)
    from lbm_lora.refinement.images import split_images

    images = split_images(config.images, config.held_images)
    check_output(config, images.all)
    twins: list[Twin] = []

    def keep(made: Adapter) -> None:
        with together():
            save_adapter(made, config.save_to)
            twins.extend(write_twins(config.save_to, config.also, progress))

    with open_checkpoint(config.base_model_path) as base, open_checkpoint(config.tuned_model_path) as tuned:
        adapter = load_adapter(config.lora_path, config.lora_alpha_is, base=base.component())
        distilled = refined(
            config,
            base,
            tuned,
            adapter,
            images,
            keep=keep,
            state=state_of(config),
            progress=progress,
        )
    return RefineResult(
        adapter=config.save_to,
        nbytes=written_bytes(config.save_to),
        before=distilled.before,
        after=distilled.after,
        gain=distilled.gain,
        step=distilled.step,
        steps=steps_of(config),
        images=len(images.learnt),
        held=len(images.held),
        twins=tuple(twins),
    )


def refined(
    config: RefineConfig,
    base: Checkpoint,
    tuned: Checkpoint,
    adapter: Adapter,
    images: "ImageSplit",
    *,
    keep: Callable[[Adapter], object],
    state: Path | None,
    progress: Progress,
) -> "DistillResult":
    """Refine an adapter between two open checkpoints.

    Args:
        config: its paths name things for messages and metadata; nothing is read from them.
        keep: receives the refined adapter.
        state: file to which the run is saved until its end, to be resumed; None: not saved.
    """
    from lbm_lora.imaging.digests import digests_of

    adapter = adapted_to_lbm(adapter, base.component().shapes).adapter
    digests = digests_of(images.all)
    dtype = precision(config.save_precision) if config.save_precision else _stored_dtype(adapter, config)
    identity = identity_of(config, base, tuned, adapter, dtype, digests.each, len(images.learnt))
    learnt = digests.each[: len(images.learnt)]
    try:
        made, result = _distill(config, base, tuned, adapter, dtype, images, identity, state, progress)
    except QualityError:
        if state is not None:
            state.unlink(missing_ok=True)  # the run would fail again
        raise
    keep(replace(made, metadata=metadata_of(config, adapter, dtype, learnt, result)))
    if state is not None:
        state.unlink(missing_ok=True)
    return result


def state_of(config: RefineConfig) -> Path | None:
    """Return the file to which a run is saved, next to the output; None for a method that saves none."""
    if config.method == "joint":
        return None
    return config.save_to.with_name(f"{config.save_to.stem}.refine.pt")


def check(config: RefineConfig) -> None:
    """Refuse invalid options before anything is opened.

    Raises:
        MissingExtraError: a package of the train extra is not installed.
        ConfigError: a number is out of its range.
    """
    if config.method == "adam":
        need_packages("refining", _PACKAGES, "train")
    for name, given in (("steps", steps_of(config)), ("batch_size", config.batch_size)):
        if given < 1:
            raise ConfigError(Option(name), f" is {given}: give 1 or more.")
    if not 0 < config.learning_rate <= 1:
        raise ConfigError(
            Option("learning_rate"), f" is {config.learning_rate:g}, but it is relative: give a value above 0, up to 1."
        )


def check_output(config: RefineConfig, images: Sequence[Path]) -> None:
    """Refuse an output that cannot be written, that is an input, or that is a file of somebody else."""
    check_form(config.save_to)
    outputs = Outputs(overwrite=config.overwrite)
    outputs.reads(config.base_model_path, config.tuned_model_path, config.lora_path, config.config_path, *images)
    outputs.writes(config.save_to)
    if state := state_of(config):
        outputs.writes(state, "the state of the run")
    plan_twins(outputs, [config.save_to], config.also)
    outputs.check()


def _distill(
    config: RefineConfig,
    base: Checkpoint,
    tuned: Checkpoint,
    adapter: Adapter,
    dtype: torch.dtype,
    images: "ImageSplit",
    identity: Mapping[str, Any],
    state: Path | None,
    progress: Progress,
) -> "tuple[Adapter, DistillResult]":
    """Get the tuned model's answers, release it, and refine the LoRA on the base."""
    from lbm_lora.refinement.images import answered_images

    if state is not None and not config.overwrite:
        from lbm_lora.refinement.distill import refuse_another

        refuse_another(state, identity)
    learnt, held = answered_images(
        _load(config, tuned, progress, "loading the tuned model"),
        images,
        timesteps=config.timesteps,
        size=config.size,
        seed=config.seed,
        mirror=config.mirror,
        progress=progress,
    )
    model = _load(config, base, progress, "loading the base")
    if config.method == "joint":
        return _joint(config, model, adapter, dtype, learnt, held, progress)
    from lbm_lora.refinement.distill import DistillSettings, distill
    from lbm_lora.refinement.student import Student

    return distill(
        Student(model, adapter, dtype),
        learnt,
        held,
        DistillSettings(
            steps=steps_of(config),
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            seed=config.seed,
        ),
        state=state,
        identity=identity,
        progress=progress,
    )


def _joint(
    config: RefineConfig,
    model: "LBMModel",
    adapter: Adapter,
    dtype: torch.dtype,
    learnt: "Sequence[AnsweredPoint]",
    held: "Sequence[AnsweredPoint]",
    progress: Progress,
) -> "tuple[Adapter, DistillResult]":
    """Fit biases, norms and ranks together; a run takes few steps and is not resumed."""
    from lbm_lora.refinement.distill import DistillResult
    from lbm_lora.refinement.joint import JointSettings
    from lbm_lora.refinement.joint_points import refit_points

    found = refit_points(
        model,
        adapter,
        learnt,
        held,
        JointSettings(steps=steps_of(config), seed=config.seed),
        dtype=dtype,
        points=config.batch_size,
        progress=progress,
    )
    return found.adapter, DistillResult(before=found.before, after=found.after, step=found.step)


def _load(config: RefineConfig, checkpoint: Checkpoint, progress: Progress, what: str) -> "LBMModel":
    from lbm_lora.model.build import load_model

    progress.start(0, what)
    dtype = dtype_of(config.torch_dtype)
    return load_model(checkpoint, config_path=config.config_path, device=config.device, dtype=dtype)


def _stored_dtype(adapter: Adapter, config: RefineConfig) -> torch.dtype:
    if adapter.dtype == PACKED and config.method == "adam":  # trained factors have no bits yet
        return torch.float16
    if adapter.dtype is not None:
        return adapter.dtype
    tensors = [*(module.up for module in adapter.modules.values()), *adapter.dense.values()]
    return tensors[0].dtype
