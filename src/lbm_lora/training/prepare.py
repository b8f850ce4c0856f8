"""Prepare a run before its first step, cheap things first: state, data, base, and only then the model."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric import Fabric

from lbm_lora.checkpoint import Checkpoint, dtype_of, fingerprint
from lbm_lora.errors import ConfigError
from lbm_lora.files import file_digest
from lbm_lora.imaging.perceptual import load_lpips
from lbm_lora.model.build import LBMModel, load_model, refuse_conditioning
from lbm_lora.model.constants import VAE_PREFIX
from lbm_lora.model.resolve import around, resolve_config
from lbm_lora.naming import ModuleName
from lbm_lora.progress import Progress
from lbm_lora.training.checkpoint import (
    RunFolder,
    TrainState,
    check_values,
    find_state,
    identity_of,
    resumed,
    state_file,
)
from lbm_lora.training.data import BucketBatches, LatentCache, PairDataset, open_data
from lbm_lora.training.lora import InitialFactors
from lbm_lora.training.loss.losses import Lpips
from lbm_lora.training.loss.objective import Objective, objective_of
from lbm_lora.training.loss.step import BridgeStep
from lbm_lora.training.optimizer import check_kept, make_optimizer
from lbm_lora.training.settings.train_config import TrainConfig
from lbm_lora.training.trainee import Trainee, Write, make_trainee, part_digest, read_given, result_writer
from lbm_lora.training.validation import Validator


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedRun:
    """A run that is ready to start.

    Attributes:
        total: optimizer steps of the complete run, including earlier parts.
        state: state to resume from.
        identity, part, measured: as in `TrainState`, of the part that begins.
        loss: the loss; its model is on the CPU.
        trainee: the trainable part of the model.
        write: writes the file of a step.
        train: the training pairs, which count corrupt samples.
        batches: this process's share of them.
        latents: the cache of their latents, if there is one.
        validator: None if there are no validation pairs.
    """

    config: TrainConfig
    folder: RunFolder
    total: int
    state: TrainState | None
    identity: dict[str, Any]
    part: str
    loss: BridgeStep
    trainee: Trainee
    write: Write
    train: PairDataset
    batches: BucketBatches
    latents: LatentCache | None
    validator: Validator | None
    measured: str | None

    @property
    def done(self) -> int:
        """Optimizer steps of earlier parts of the run."""
        return self.state.step if self.state else 0

    @property
    def left(self) -> int:
        """Optimizer steps of this part; none if earlier parts have done more than the configuration asks for."""
        return max(0, self.total - self.done)


def prepare(config: TrainConfig, base: Checkpoint, fabric: Fabric, progress: Progress) -> PreparedRun:
    """Read and check everything, then build the model.

    Raises:
        InputError: a subclass that fits the cause.
    """
    folder = RunFolder(config.save_ckpt_path)
    state = find_state(config, folder)
    lbm = resolve_config(base, config_path=config.config_path)
    refuse_conditioning(lbm, where=base.path)
    objective = objective_of(config, lbm)
    lpips = _lpips(config, objective, fabric.device)
    train, batches = _pairs(config, fabric, progress)
    validator, measured = None, None
    if config.has_validation:
        dataset = open_data(config, "validation", seed=config.seed, progress=progress)
        validator = Validator(dataset, count=config.validation_samples, num_steps=config.num_steps, lpips=lpips)
        weights = "" if config.lpips_weights is None else file_digest(config.lpips_weights)
        measured = f"{dataset.index.digest} {weights}".rstrip()
    component = base.component()
    denoiser = fingerprint(component)
    given = read_given(config, component, denoiser)
    identity = identity_of(config, denoiser.digest, around(base, lbm), train.index, fabric.world_size)
    if state is None:
        initial, part = None, part_digest(config, {"identity": identity, "measured": measured})
    else:
        state = resumed(state, config, identity, measured, progress)
        initial, part = {ModuleName(name): InitialFactors(*pair) for name, pair in state.origins.items()}, state.part
    model = load_model(
        base.path,
        config_path=config.config_path,
        dtype=torch.float32 if config.mode == "full" else dtype_of(config.base_dtype),
    )  # on the CPU, where its weights are views of the file
    if config.gradient_checkpointing:
        model.denoiser.enable_gradient_checkpointing()
        model.vae.enable_gradient_checkpointing()
    trainee = make_trainee(model, config, given, initial)
    make_optimizer(trainee.parameters, config)  # refuses what it cannot train
    if state is not None:
        check_values(state, trainee.parameters, state_file(config))
        check_kept(state.optimizer, trainee.parameters, config)
    mixed = config.precision == "bf16-mixed"
    return PreparedRun(
        config=config,
        folder=folder,
        total=total_steps(batches, config, state),
        state=state,
        identity=identity,
        part=part,
        loss=BridgeStep(model=model, objective=objective, seed=config.seed, lpips=lpips, mixed=mixed),
        trainee=trainee,
        write=result_writer(trainee, config, base, denoiser, model.config, part),
        train=train,
        batches=batches,
        latents=_latents(config, base, model),
        validator=validator,
        measured=measured,
    )


def total_steps(batches: BucketBatches, config: TrainConfig, state: TrainState | None = None) -> int:
    """Return the optimizer steps of a run; forward passes that do not fill the last step are dropped.

    Args:
        state: where it resumes. Its steps may have been of another batch size.
    """
    done, epoch, batch = (state.step, state.epoch, state.batch) if state else (0, 0, 0)
    left = batches.steps * max(0, config.max_epochs - epoch) - min(batch, batches.steps)
    steps = done + max(0, left) // config.accumulate
    return steps if config.max_steps is None else min(steps, config.max_steps)


def _lpips(config: TrainConfig, objective: Objective, device: torch.device) -> Lpips | None:
    """Return the LPIPS network if a loss or a metric needs it, or if its weights are available."""
    in_loss = objective.pixel_loss_weight > 0 and objective.pixel_loss_type == "lpips"
    if not in_loss and config.best_metric != "lpips" and config.lpips_weights is None:
        return None
    return load_lpips(config.lpips_net, config.lpips_weights, device)


def _pairs(config: TrainConfig, fabric: Fabric, progress: Progress) -> tuple[PairDataset, BucketBatches]:
    """Return the training pairs, and this process's batches of them."""
    train = open_data(config, "train", seed=config.seed, progress=progress)
    batches = BucketBatches(
        train,
        config.batch_size,
        seed=config.seed,
        rank=fabric.global_rank,
        world=fabric.world_size,
        shuffle=config.shuffle,
    )
    total, most = total_steps(batches, config), config.max_steps
    if not total:
        raise ConfigError(
            f"{config.max_epochs} epochs of {batches.steps} batches do not fill one step with accumulate "
            f"{config.accumulate}. Lower accumulate, or raise max_epochs."
        )
    for line in batches.notes():
        progress.note(line)
    if most is not None and total < most:
        progress.note(f"max_epochs {config.max_epochs} ends the run after {total:,} steps, before max_steps {most:,}.")
    return train, batches


def _latents(config: TrainConfig, base: Checkpoint, model: LBMModel) -> LatentCache | None:
    if not config.cache_latents:
        return None
    assert config.cache_dir is not None, "the settings check ensures it"
    vae = fingerprint(base.component(VAE_PREFIX)).digest
    settings = json.dumps(model.config.vae_config, sort_keys=True, default=str)
    return LatentCache(config.cache_dir, f"{vae} {settings} posterior mean {model.vae_dtype}")
