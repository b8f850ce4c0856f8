"""Prepare a run before its first step, cheap things first: state, data, base, and only then the model."""

import json
from collections.abc import Mapping

import torch
from lightning.fabric import Fabric
from torch import nn

from lbm_lora.adapter import Adapter, load_adapter
from lbm_lora.apply import adapted_to_lbm, check_base, check_fit
from lbm_lora.checkpoint import Checkpoint, Component, Fingerprint, dtype_of, fingerprint
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
from lbm_lora.training.data.batches import BucketBatches
from lbm_lora.training.data.dataset import PairDataset, open_data
from lbm_lora.training.data.latents import LatentCache
from lbm_lora.training.learner import check_kept, make_optimizer
from lbm_lora.training.lora import InitialFactors, inject_plan, layout_of, plan_continued, plan_new
from lbm_lora.training.loss import BridgeStep, Lpips, Objective, objective_of
from lbm_lora.training.settings import TrainConfig
from lbm_lora.training.trainee import FullModel, Trainee, part_digest, result_writer
from lbm_lora.training.validation import Validator


class PreparedRun:
    """A run that is ready to start: everything is read and checked, then the model built, on the CPU.

    Attributes:
        state: state to resume from.
        total: optimizer steps of the complete run, including earlier parts.
        done, left: those of earlier parts, and of this one: none if earlier parts have done more than is asked for.
        identity, part, measured: as in `TrainState`, of the part that begins.
        batches: this process's share of the training pairs.
    """

    def __init__(self, config: TrainConfig, base: Checkpoint, fabric: Fabric, progress: Progress) -> None:
        self.config, self.folder = config, RunFolder(config.save_ckpt_path)
        state = find_state(config, self.folder)
        lbm = resolve_config(base, config_path=config.config_path)
        refuse_conditioning(lbm, where=base.path)
        objective = objective_of(config, lbm)
        lpips = _lpips(config, objective, fabric.device)
        self.train, self.batches = _pairs(config, fabric, progress)
        self.validator: Validator | None = None
        self.measured: str | None = None
        if config.has_validation:
            pairs = open_data(config, "validation", seed=config.seed, progress=progress)
            steps = config.num_steps
            self.validator = Validator(pairs, count=config.validation_samples, num_steps=steps, lpips=lpips)
            weights = "" if config.lpips_weights is None else file_digest(config.lpips_weights)
            self.measured = f"{pairs.index.digest} {weights}".rstrip()
        component = base.component()
        denoiser = fingerprint(component)
        given = read_given(config, component, denoiser)
        vae_and_config = around(base, lbm)
        self.identity = identity_of(config, denoiser.digest, vae_and_config, self.train.index, fabric.world_size)
        initial: dict[ModuleName, InitialFactors] | None = None
        if state is None:
            self.part = part_digest(config, {"identity": self.identity, "measured": self.measured})
        else:
            state = resumed(state, config, self.identity, self.measured, progress)
            initial = {ModuleName(name): InitialFactors(*pair) for name, pair in state.origins.items()}
            self.part = state.part
        dtype = torch.float32 if config.mode == "full" else dtype_of(config.base_dtype)
        model = load_model(base.path, config_path=config.config_path, dtype=dtype)  # weights are views of the file
        if config.gradient_checkpointing:
            model.denoiser.enable_gradient_checkpointing()
            model.vae.enable_gradient_checkpointing()
        self.trainee = make_trainee(model, config, given, initial)
        make_optimizer(self.trainee.parameters, config)  # refuses what it cannot train
        if state is not None:
            check_values(state, self.trainee.parameters, state_file(config))
            check_kept(state.optimizer, self.trainee.parameters, config)
        self.state, self.done = state, state.step if state else 0
        self.total = total_steps(self.batches, config, state)
        self.left = max(0, self.total - self.done)
        mixed = config.precision == "bf16-mixed"
        self.loss = BridgeStep(model=model, objective=objective, seed=config.seed, lpips=lpips, mixed=mixed)
        self.write = result_writer(self.trainee, config, base, denoiser, model.config, self.part)
        self.latents = _latents(config, base, model)


def total_steps(batches: BucketBatches, config: TrainConfig, state: TrainState | None = None) -> int:
    """Return the optimizer steps of a run; forward passes that do not fill the last step are dropped.

    The steps of the state from which it resumes may have been of another batch size.
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
    assert config.cache_dir is not None
    vae = fingerprint(base.component(VAE_PREFIX)).digest
    settings = json.dumps(model.config.vae_config, sort_keys=True, default=str)
    return LatentCache(config.cache_dir, f"{vae} {settings} posterior mean {model.vae_dtype}")


def read_given(config: TrainConfig, base: Component, found: Fingerprint) -> Adapter | None:
    """Read the adapter that training continues, checked against the base."""
    if config.lora_weights_path is None:
        return None
    adapter = load_adapter(config.lora_weights_path, config.lora_alpha_is, base=base)
    adapter = adapted_to_lbm(adapter, base.shapes).adapter
    check_fit(adapter, base.shapes)
    # no override: a LoRA trained on another base than its own would fit neither
    check_base(adapter, base, allow_other_base=None, found=found)
    return adapter


def make_trainee(
    model: LBMModel, config: TrainConfig, given: Adapter | None, initial: Mapping[ModuleName, InitialFactors] | None
) -> Trainee:
    """Make a new model's denoiser trainable as configured.

    Args:
        given: the adapter that training continues.
        initial: initial factors of the resumed run.
    """
    denoiser: nn.Module = model.denoiser
    if config.mode == "full":
        for parameter in denoiser.parameters():
            parameter.data = parameter.data.float().clone()  # independent of the file
            parameter.requires_grad_(True)
        return FullModel(denoiser)
    layout = layout_of(denoiser)
    plan = plan_new(layout, config) if given is None else plan_continued(layout, config, given)
    init, dropout, seed = config.init_lora, config.lora_dropout, config.seed
    return inject_plan(denoiser, plan, given=given, init=init, dropout=dropout, seed=seed, initial=initial)
