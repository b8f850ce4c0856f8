"""Prepare a run before its first step, cheap things first: state, data, base, and only then the model."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from lbm_lora.checkpoint import Checkpoint, dtype_of, fingerprint
from lbm_lora.errors import ConfigError, listing
from lbm_lora.imaging.perceptual import load_lpips
from lbm_lora.model.build import LBMModel, load_model, refuse_conditioning
from lbm_lora.model.constants import VAE_PREFIX
from lbm_lora.model.resolve import resolve_config
from lbm_lora.plain_text import parse_yaml, read_text
from lbm_lora.progress import Progress
from lbm_lora.regular_file import file_digest
from lbm_lora.trainable.state import TrainState, Values, changed_keys, check_identity, check_values, load_state
from lbm_lora.training.data import BucketBatches, LatentCache, PairDataset, open_data
from lbm_lora.training.loss.losses import Lpips
from lbm_lora.training.loss.objective import Objective, objective_of
from lbm_lora.training.loss.step import BridgeStep
from lbm_lora.training.run.optimizer import check_kept, make_optimizer
from lbm_lora.training.run.run_folder import RunFolder
from lbm_lora.training.run.trainee import ResultWriter, Trainee, make_trainee, read_given, trained_steps
from lbm_lora.training.run.validation import Validator
from lbm_lora.training.settings.train_config import TrainConfig

_SAME = (
    "mode", "lora_rank", "lora_conv_rank", "lora_alpha", "lora_conv_alpha", "lora_target_modules", "rank_pattern",
    "alpha_pattern", "trainable_lora_modules", "train_biases", "train_norms", "use_rslora", "init_lora", "optimizer",
    "seed", "accumulate", "image_size", "image_size_prob", "aspect_buckets", "shuffle",
)  # fmt: skip
"""Keys that must not change when a run resumes: what is trained, and the order of the data."""
_FREE = ("save_ckpt_path", "resume", "device", "devices", "num_nodes", "batch_size", "num_workers")
"""Keys whose changes are not reported."""
_MEASURED = {
    "best_metric", "validation_shards", "validation_folder", "validation_samples", "num_steps", "lpips_net",
    "lpips_weights", "source_key", "target_key", "mask_key", "latent_loss_type", "latent_loss_weight",
    "pixel_loss_type", "pixel_loss_weight", "pixel_loss_max_size", "timestep_sampling", "selected_timesteps", "prob",
    "logit_mean", "logit_std", "bridge_noise_sigma",
}  # fmt: skip
"""Keys that scores depend on, besides those that must not change."""

Write = Callable[[Values, int, Path], None]
"""Function of (trainable values, step, path) that writes the result of a step."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedRun:
    """A run that is ready to start.

    Attributes:
        total: optimizer steps of the complete run, including earlier parts.
        state: state to resume from.
        identity: values that must match when it resumes; see `TrainState`.
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
    loss: BridgeStep
    trainee: Trainee
    write: Write
    train: PairDataset
    batches: BucketBatches
    latents: LatentCache | None
    validator: Validator | None

    @property
    def done(self) -> int:
        """Optimizer steps of earlier parts of the run."""
        return self.state.step if self.state else 0


def prepare(config: TrainConfig, base: Checkpoint, fabric: Fabric, progress: Progress) -> PreparedRun:
    """Read and check everything, then build the model.

    Raises:
        InputError: a subclass that fits the cause.
    """
    folder = RunFolder(config.save_ckpt_path)
    where = folder.state if config.resume in ("auto", "never") else Path(config.resume)
    state = _find_state(config, folder)
    lbm = resolve_config(base, config_path=config.config_path)
    refuse_conditioning(lbm, where=base.path)
    objective = objective_of(config, lbm)
    lpips = _lpips(config, objective, fabric.device)
    train, batches = _pairs(config, fabric, progress)
    validator = _validator(config, lpips, progress)
    component = base.component()
    found = fingerprint(component)
    given = read_given(config, component, found)
    identity = _identity(config, found.digest, len(train), fabric.world_size)
    if state is not None:
        check_identity(state, identity, where)
        changed = _changed(state, config)
        _say_changes(state, changed, progress)
        state = _comparable(state, changed, progress)
    model = _load(config, base)
    trainee = make_trainee(model, config, given, state.initial_factors() if state else None)
    make_optimizer(trainee.parameters, config)  # refuses what it cannot train
    if state is not None:
        check_values(state, trainee.parameters, where)
        check_kept(state.optimizer, trainee.parameters, config)
    mixed = config.precision == "bf16-mixed"
    return PreparedRun(
        config=config,
        folder=folder,
        total=total_steps(batches, config, state),
        state=state,
        identity=identity,
        loss=BridgeStep(model=model, objective=objective, seed=config.seed, lpips=lpips, mixed=mixed),
        trainee=trainee,
        write=ResultWriter(model=model, trainee=trainee, config=config, base=base, fingerprint=found),
        train=train,
        batches=batches,
        latents=_latents(config, base, model),
        validator=validator,
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


def _find_state(config: TrainConfig, folder: RunFolder) -> TrainState | None:
    if config.resume == "never":
        folder.refuse_results()
        return None
    if config.resume != "auto" and not (folder.state.exists() and folder.state.samefile(config.resume)):
        return _from_another_folder(config, folder)
    if folder.state.exists():
        return load_state(folder.state)
    _refuse_another(config, folder)
    return None


def _from_another_folder(config: TrainConfig, folder: RunFolder) -> TrainState:
    """Return a state that goes on in a folder of its own: results of the first folder are no longer the run's.

    Raises:
        ConfigError: the folder holds another run.
    """
    state = load_state(Path(config.resume))
    if folder.state.exists():
        own = load_state(folder.state)
        if own.identity == state.identity and own.step >= state.step:  # the same command was run before
            return own
        raise ConfigError(
            f"{folder.path} holds a run with a state of its own, and resume names {config.resume}. Set resume to auto "
            "to go on with the run in the folder, or choose another save_ckpt_path."
        )
    _refuse_another(config, folder, start=state.step)
    return replace(state, saved_steps=(), best=None, best_step=None, validated=-1)


def _refuse_another(config: TrainConfig, folder: RunFolder, *, start: int = 0) -> None:
    """Refuse results of a run with other settings that has not saved its state: the two would mix their files.

    Args:
        start: the steps after which the run begins in this folder.

    Raises:
        ConfigError: names what differs.
    """
    there = [*folder.results(), *folder.grids()]
    if not there:
        return
    try:
        held = dict(parse_yaml(read_text(folder.config)))
        wanted = parse_yaml(config.to_yaml())
        differing = [
            f"{key} was {held[key]!r} and is now {value!r}"
            for key, value in wanted.items()
            if key not in _FREE and key in held and held[key] != value
        ]
    except (OSError, TypeError, ValueError):
        differing = [f"its {folder.config.name} cannot be read"]
    if differing:
        raise ConfigError(
            f"{folder.path} holds {listing((path.name for path in there), limit=3)} of another run, without "
            f"a state to resume from: {listing(differing, limit=3)}. Choose another save_ckpt_path, or move that run "
            "away."
        )
    if not folder.results():
        return
    # a run that was killed before its first state has left at most the best of its first validations
    steps = trained_steps(folder.best) if folder.results() == [folder.best] else None
    if steps is None or not start <= steps <= start + config.save_interval:
        raise ConfigError(
            f"{folder.path} holds {listing((path.name for path in folder.results()), limit=3)} of a run that has lost "
            f"its {folder.state.name}, and would begin again over them. Choose another save_ckpt_path, or move "
            "that run away; lora_weights_path goes on from its LoRA."
        )


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


def _validator(config: TrainConfig, lpips: Lpips | None, progress: Progress) -> Validator | None:
    if not config.has_validation:
        return None
    dataset = open_data(config, "validation", seed=config.seed, progress=progress)
    return Validator(dataset, count=config.validation_samples, num_steps=config.num_steps, lpips=lpips)


def _identity(config: TrainConfig, base: str, pairs: int, world: int) -> dict[str, Any]:
    """Return the values that must match when the run resumes."""
    values = config.model_dump(mode="json")
    given = config.lora_weights_path
    return {key: values[key] for key in _SAME} | {
        "base_model_path (by content)": base,
        "lora_weights_path (by content)": None if given is None else file_digest(given),
        "lora_alpha_is": None if config.lora_alpha_is == "auto" else config.lora_alpha_is,  # earlier runs lack it
        "number of training pairs": pairs,
        "samples of a forward pass over all processes": config.batch_size * world,
    }


def _changed(state: TrainState, config: TrainConfig) -> dict[str, str]:
    """Return the keys that a run may change when it resumes, and how they have changed."""
    values = config.model_dump(mode="json")
    return changed_keys(state, {key: value for key, value in values.items() if key not in (*_SAME, *_FREE)})


def _say_changes(state: TrainState, changed: Mapping[str, str], progress: Progress) -> None:
    progress.note(f"resuming after step {state.step:,}.")
    if changed:
        progress.note(f"changed since its last save: {', '.join(changed.values())}.")


def _comparable(state: TrainState, changed: Mapping[str, str], progress: Progress) -> TrainState:
    """Return the state without its best score if new ones are measured otherwise."""
    if state.best is None or not changed.keys() & _MEASURED:
        return state
    progress.note("the best score so far was measured otherwise: the best save is chosen anew from here on.")
    return replace(state, best=None, best_step=None, validated=-1)


def _load(config: TrainConfig, base: Checkpoint) -> LBMModel:
    """Load the model on the CPU, where its weights are views of the file."""
    dtype = torch.float32 if config.mode == "full" else dtype_of(config.base_dtype)
    model = load_model(base.path, config_path=config.config_path, dtype=dtype)
    if config.gradient_checkpointing:
        model.denoiser.enable_gradient_checkpointing()
        model.vae.enable_gradient_checkpointing()
    return model


def _latents(config: TrainConfig, base: Checkpoint, model: LBMModel) -> LatentCache | None:
    if not config.cache_latents:
        return None
    assert config.cache_dir is not None, "the settings check ensures it"
    vae = fingerprint(base.component(VAE_PREFIX)).digest
    settings = json.dumps(model.config.vae_config, sort_keys=True, default=str)
    return LatentCache(config.cache_dir, f"{vae} {settings} posterior mean {model.vae_dtype}")
