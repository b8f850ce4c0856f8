"""The folder of a run: the state from which it resumes, its results, and a lock that keeps the folder to one run.

step-000500.safetensors   the LoRA after 500 steps (mode full: a tuned checkpoint)
last.safetensors          the newest of them
best.safetensors          the best by the chosen metric
best-of-step-000500.safetensors
                          the best before the validation was changed
resume.pt                 trainable values, optimizer and position: a stopped run resumes from it
config.yaml               the configuration with all defaults
pictures/step-000500.png  source, predictions and target of validation pairs
logs/                     TensorBoard, CSV or W&B

Every random draw of a run depends on (seed, epoch, sample) or (seed, step, rank), and the learning rate on the step.
The position therefore also determines the random numbers and the schedule. A save writes the state first, so that
there is never a result without the state of its run.
"""

import os
import re
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import IO, Annotated, Any, ClassVar, cast

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer

from lbm_lora.adapter.adapter_file import lora_digest
from lbm_lora.blocks import is_finite
from lbm_lora.errors import ConfigError, not_there
from lbm_lora.files import MARK, atomic_path, cannot_write, check_regular, is_same
from lbm_lora.progress import Progress
from lbm_lora.training.data.pairs import PairIndex
from lbm_lora.training.settings import STATE_NAME, TrainConfig
from lbm_lora.training.trainee import Write, part_digest, same_settings

try:
    from torch.distributed.tensor import DTensor, distribute_tensor
except ImportError:  # torch < 2.5
    from torch.distributed._tensor import DTensor, distribute_tensor

TRAINING_STATE = f"{MARK}: training"
"""Mark of a file from which a training run goes on."""
FORMAT = 1
Values = dict[str, Tensor]

_PATIENCE = 10.0  # seconds: the processes that load data for a killed run hold its folder a little longer
_STEP = re.compile(r"step-(\d{6,})\.safetensors")
_INSTEAD = "Remove it to start again, or continue from the last save with lora_weights_path."
_Count = Annotated[int, Field(ge=0, le=10**15)]

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


class RunFolder:
    """Paths of files in the folder of a run."""

    def __init__(self, path: Path) -> None:
        self.path, self.logs = path, path / "logs"
        self.state, self.config = path / STATE_NAME, path / "config.yaml"
        self.last, self.best = path / "last.safetensors", path / "best.safetensors"

    def step_file(self, step: int) -> Path:
        return self.path / f"step-{step:06d}.safetensors"

    def grid(self, step: int) -> Path:
        return self.path / "pictures" / f"step-{step:06d}.png"

    def step_files(self) -> dict[int, Path]:
        """Return the numbered results by step, in their order."""
        there = self.path.glob("step-*.safetensors")
        return dict(sorted((int(match[1]), path) for path in there if (match := _STEP.fullmatch(path.name))))

    def grids(self) -> list[Path]:
        return sorted(self.grid(0).parent.glob("step-*.png"))

    def save(self, step: int, write: Write, values: Values, *, keep: int | None, again: bool = False) -> None:
        """Write the result of a step, make it the last one, and remove the oldest results before it.

        Args:
            keep: number of numbered results that stay; None: all.
            again: the result may be there already.
        """
        path = self.step_file(step)
        if not (again and path.exists()):
            write(values, step, path)
        with atomic_path(self.last) as temporary:
            try:
                os.link(path, temporary)
            except OSError:  # a disk without hard links
                shutil.copyfile(path, temporary)
        old = [path for number, path in self.step_files().items() if number <= step]
        for path in old[:-keep] if keep else ():
            path.unlink()

    @contextmanager
    def held(self) -> Generator[None]:
        """Keep the folder to one run. A new folder to which nothing is written is removed again."""
        from filelock import FileLock, Timeout  # which a refinement does not need

        is_new, lock = not self.path.exists(), FileLock(self.path / ".lock", timeout=_PATIENCE)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with suppress(NotImplementedError):  # a disk without locks
                lock.acquire()
        except Timeout:
            raise ConfigError(
                f"another run is training in {self.path} right now. Choose another save_ckpt_path, or wait for it."
            ) from None
        except OSError as error:
            raise cannot_write(self.path, error) from None
        try:
            yield
        finally:
            with suppress(OSError):
                Path(lock.lock_file).unlink()
            lock.release()
            if is_new:
                with suppress(OSError):
                    self.path.rmdir()


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """State of a run. The field names are the keys of its file.

    Attributes:
        step: completed optimizer steps.
        epoch, batch: the next batch of the data.
        values: trainable values by name, fp32; `optimizer` is the optimizer's state for each.
        average: the moving average, if there is one; of a refinement, the values of the best LoRA so far.
        origins: module -> (down, up) of its `InitialFactors`.
        best: the best metric so far; larger is better.
        best_step: the step after which it was measured; without `best`, that of another validation.
        validated: the last step after which a validation ran; -1 for none.
        identity: values that must match for the state to be usable; `config` is all keys, to report what has changed.
        part: digest of the part of the run since its settings were changed last, which results carry. It depends on
            all that went before. Empty in states of earlier versions.
        measured: digest of what scores were measured on; of a run without validation, and of earlier versions, None.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(arbitrary_types_allowed=True)

    step: _Count
    epoch: _Count
    batch: _Count
    values: Values
    optimizer: dict[str, dict[str, Any]]
    average: Values | None
    origins: dict[str, tuple[Tensor, Tensor]]
    best: float | None
    best_step: int | None
    validated: int
    identity: dict[str, Any]
    config: dict[str, Any]
    part: str = ""
    measured: str | None = None
    format: int = field(default=FORMAT)


class _Target:
    """File for `torch.save` that keeps the reason why a write failed: torch raises a RuntimeError without it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.error: OSError | None = None
        self._file = file

    def write(self, data: bytes | memoryview) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def save_state(state: TrainState, path: Path, *, mark: str) -> None:
    """Write a state atomically, marked as that of a training or a refinement."""
    held = {mark: True} | {entry.name: getattr(state, entry.name) for entry in fields(state)}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        target = _Target(file)
        try:
            torch.save(held, target)  # pyright: ignore[reportArgumentType]
        except Exception as error:
            raise target.error or error from None


def load_state(path: Path) -> TrainState:
    """Read a state; entries of earlier versions that say nothing about the run are left out."""
    try:
        check_regular(path)
        held = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(not_there(path, (path.suffix,))) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except Exception as error:  # a damaged pickle may raise nearly anything (documentation of pickle)
        raise ConfigError(f"{path} is not the state of a training run ({type(error).__name__}). Remove it.") from None
    if not isinstance(held, dict) or "format" not in held:
        raise ConfigError(f"{path} is not the state of a training run: it holds no such entries. Give its resume.pt.")
    entries = cast(dict[str, Any], held)
    if entries["format"] != FORMAT:
        raise ConfigError(f"{path} has another version's format. Start again in another save_ckpt_path.")
    try:
        return TypeAdapter(TrainState).validate_python(entries)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"{path} is damaged: {'.'.join(map(str, first['loc'][:2]))}: {first['msg']}. {_INSTEAD}"
        ) from None


def check_values(state: TrainState, parameters: Mapping[str, nn.Parameter], path: Path) -> None:
    """Check that a state has what the parameters of a run need, before it is restored."""
    for name, parameter in parameters.items():
        held = [values.get(name) for values in (state.values, state.average) if values is not None]
        kept = [value for value in state.optimizer.get(name, {}).values() if isinstance(value, Tensor)]
        are_fit = all(value is not None and value.shape == parameter.shape for value in held)
        if not are_fit or not all(is_finite(value) for value in (*held, *kept) if value is not None):
            raise ConfigError(
                f"{path} is damaged: {name} must have finite values of shape {tuple(parameter.shape)}. {_INSTEAD}"
            )


def on_cpu(value: Tensor) -> Tensor:
    """Return a complete copy on the CPU; every process must call this, and the next ones."""
    value = value.detach()
    return (value.full_tensor() if isinstance(value, DTensor) else value).to("cpu", copy=True)


def copied(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: on_cpu(value) for name, value in values.items()}


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a tensor on the device of a parameter, with the same sharding."""
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value


def optimizer_state(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, dict[str, Any]]:
    """Return an optimizer's state by the names of its parameters, on the CPU."""
    held: Mapping[Tensor, Mapping[str, Any]] = optimizer.state
    return {
        name: {key: on_cpu(value) if isinstance(value, Tensor) else value for key, value in held[parameter].items()}
        for name, parameter in parameters.items()
        if parameter in held
    }


@torch.no_grad()
def restore(
    state: TrainState, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer, average: Values | None
) -> None:
    """Restore a state into the trainable parameters, in place. A missing average starts from the state's values."""
    held: dict[int, dict[str, Any]] = {}
    in_order = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    places = {parameter: place for place, parameter in enumerate(in_order)}
    for name, parameter in parameters.items():
        parameter.copy_(like(state.values[name], parameter))
        if average is not None:
            average[name].copy_(like((state.average or state.values)[name], parameter))
        if name in state.optimizer:
            held[places[parameter]] = {
                key: like(value, parameter) if isinstance(value, Tensor) and value.dim() else value
                for key, value in state.optimizer[name].items()
            }
    optimizer.load_state_dict({"state": held, "param_groups": optimizer.state_dict()["param_groups"]})


def state_file(config: TrainConfig) -> Path:
    return RunFolder(config.save_ckpt_path).state if config.resume in ("auto", "never") else Path(config.resume)


def find_state(config: TrainConfig, folder: RunFolder) -> TrainState | None:
    """Return the state to resume from; None for a new run.

    A state of another folder continues in this one, whose results are its own.
    """
    own = load_state(folder.state) if folder.state.exists() and config.resume != "never" else None
    if config.resume in ("auto", "never") or is_same(folder.state, Path(config.resume)):
        return own
    if own is not None:
        if own.config.get("resume") == str(config.resume):  # the same command was run before
            return own
        raise ConfigError(
            f"{folder.path} holds a run with a state of its own, and resume names {config.resume}. Set resume to auto "
            "to go on with the run in the folder, or choose another save_ckpt_path."
        )
    state = load_state(Path(config.resume))
    part = part_digest(config, {"begins with": state.part, "step": state.step})
    return replace(state, best=None, best_step=None, validated=-1, part=part)


def identity_of(config: TrainConfig, base: str, around: str, pairs: PairIndex, world: int) -> dict[str, Any]:
    """Return the values that must match when the run resumes.

    Args:
        base, around: digests of the base's denoiser, and of its VAE and the model's configuration.
    """
    values = config.model_dump(mode="json")
    given = config.lora_weights_path
    return {key: values[key] for key in _SAME} | {
        "base_model_path (by content)": base,
        "VAE and configuration of base_model_path (by content)": around,
        "lora_weights_path (by content)": None if given is None else lora_digest(given),
        "lora_alpha_is": None if config.lora_alpha_is == "auto" else config.lora_alpha_is,  # earlier runs lack it
        "number of training pairs": len(pairs),
        "training pairs (by the sizes of their files)": pairs.digest,
        "samples of a forward pass over all processes": config.batch_size * world,
    }


def resumed(
    state: TrainState, config: TrainConfig, identity: Mapping[str, Any], measured: str | None, progress: Progress
) -> TrainState:
    """Return the state to resume from; note what changed. `measured` is the digest of now."""
    for key, value in identity.items():
        held = state.identity.get(key)
        if held != value:
            raise ConfigError(
                f"{state_file(config)} is the state of another run: {key} was {held!r} and is now {value!r}. Choose "
                "another save_ckpt_path, or move that run away. To continue training its LoRA, use lora_weights_path."
            )
    progress.note(f"resuming after step {state.step:,}.")
    values = config.model_dump(mode="json")
    keys = values.keys() - {*_SAME, *_FREE}
    changed = {key: value for key, value in values.items() if key in keys and state.config.get(key) != value}
    if changed:
        listed = (f"{key}: {state.config.get(key)} -> {value}" for key, value in changed.items())
        progress.note(f"changed since its last save: {', '.join(listed)}.")
    part = state.part
    if not part or not same_settings(state.config, config) or state.measured != measured:
        part = part_digest(config, {"begins with": part, "step": state.step, "measured": measured})
    state = replace(state, part=part)
    if not changed.keys() & _MEASURED and state.measured in (None, measured):
        return state
    if state.best is not None:
        progress.note(
            "the best score so far was measured otherwise: the best save is chosen anew from here on, and the "
            "earlier one is kept."
        )
    step = state.step if state.best_step is None else state.best_step
    return replace(state, best=None, best_step=step, validated=-1)
