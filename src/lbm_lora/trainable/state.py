"""State from which a stopped run resumes: a few megabytes of trainable values, never the base.

Every random draw of a run depends on (seed, epoch, sample) or (seed, step, rank), and the learning rate on the step.
The position therefore also determines the random numbers and the schedule.
"""

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Annotated, Any, ClassVar, cast

import torch
from pydantic import ConfigDict, Field, JsonValue, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.optim import Optimizer

from lbm_lora.atomic import atomic_path
from lbm_lora.blocks import is_finite
from lbm_lora.errors import ConfigError
from lbm_lora.missing_path import not_there
from lbm_lora.naming import ModuleName
from lbm_lora.ownership import MARK
from lbm_lora.regular_file import check_regular
from lbm_lora.trainable.inject import InitialFactors

try:
    from torch.distributed.tensor import DTensor, distribute_tensor
except ImportError:  # torch < 2.5
    from torch.distributed._tensor import DTensor, distribute_tensor

FORMAT = 1
Values = dict[str, Tensor]
_INSTEAD = "Remove it to start again, or continue from the last save with lora_weights_path."
_SETTINGS = TypeAdapter(dict[str, JsonValue])
_Count = Annotated[int, Field(ge=0, le=10**15)]


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """State of a run.

    Attributes:
        step: completed optimizer steps.
        epoch, batch: the next batch of the data.
        values: trainable values by name, fp32.
        optimizer: name -> the optimizer's state for it.
        average: the moving average, if there is one; of a refinement, the values of the best LoRA so far.
        origins: module -> (down, up) of its `InitialFactors`.
        best: the best metric so far; larger is better.
        best_step: the step after which it was measured; without `best`, that of another validation.
        validated: the last step after which a validation ran; -1 for none.
        saved_steps: steps whose files the run has written and not removed.
        part: digest that names the part of the run since its settings were changed last. It depends on all that went
            before: other runs have others. Empty in states of earlier versions.
        earlier_parts: digest of each earlier part -> the step after which it ended.
        measured: digest of what scores were measured on; of a run without validation, and of earlier versions, None.
        results: step -> digest of the file that the run has written after it, as far as the state is later than it.
        best_result: digest of the file of the best step, likewise.
        identity: values that must match for the state to be usable.
        config: all keys, to report what has changed.

    The field names are the keys of the file.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

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
    saved_steps: tuple[_Count, ...] = ()
    part: str = ""
    earlier_parts: dict[str, _Count] = field(default_factory=dict[str, int])
    measured: str | None = None
    results: dict[int, str] = field(default_factory=dict[int, str])
    best_result: str | None = None
    format: int = field(default=FORMAT)

    def initial_factors(self) -> dict[ModuleName, InitialFactors]:
        """Return `origins` as `InitialFactors` by module name."""
        return {ModuleName(name): InitialFactors(down, up) for name, (down, up) in self.origins.items()}


class _Target:
    """A file for `torch.save` that keeps the reason why a write failed: torch raises a RuntimeError without it."""

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
    """Write the state atomically.

    Args:
        mark: `TRAINING_STATE` or `REFINEMENT_STATE`.

    Raises:
        OSError: the disk is full, or limits the size of files.
    """
    held = _plain({mark: True} | {entry.name: getattr(state, entry.name) for entry in fields(state)})
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        target = _Target(file)
        try:
            torch.save(held, target)  # pyright: ignore[reportArgumentType]
        except Exception:
            if target.error is None:
                raise
            raise target.error from None


def _plain(value: Any) -> Any:
    """Return a copy of containers in which equal texts are one object, and nothing else is shared.

    A pickle refers back to objects, so without this the bytes would depend on where the values come from.
    """
    if type(value) is str:
        return sys.intern(value)
    if type(value) is dict:
        return {_plain(key): _plain(one) for key, one in cast(dict[Any, Any], value).items()}
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value


def load_state(path: Path) -> TrainState:
    """Read a state.

    Raises:
        ConfigError: the file cannot be read, or is not a state of this format.
    """
    try:
        check_regular(path)
        held = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(not_there(path, (path.suffix,))) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except Exception as error:  # a damaged pickle may raise nearly anything (documentation of pickle)
        raise ConfigError(f"{path} is not the state of a training run ({type(error).__name__}). Remove it.") from None
    entries = cast(dict[str, Any], held) if isinstance(held, dict) else {}
    if "format" not in entries:
        raise ConfigError(f"{path} is not the state of a training run: it holds no such entries. Give its resume.pt.")
    if entries["format"] != FORMAT:
        raise ConfigError(f"{path} has another version's format. Start again in another save_ckpt_path.")
    try:
        state = TypeAdapter(TrainState).validate_python(
            {name: value for name, value in entries.items() if not name.startswith(MARK)}
        )
        for settings in (state.identity, state.config):
            _SETTINGS.validate_python(settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"{path} is damaged: {'.'.join(map(str, first['loc'][:2]))}: {first['msg']}. {_INSTEAD}"
        ) from None
    strange = [name for name, value in _numbers(state) if not _is_plain(value)]
    if strange:
        raise ConfigError(f"{path} is damaged: {strange[0]} holds no plain numbers. {_INSTEAD}")
    return state


def _numbers(state: TrainState) -> Iterator[tuple[str, object]]:
    """Yield what must be numbers, one or many, by what it belongs to."""
    yield from state.values.items()
    yield from (state.average or {}).items()
    yield from ((name, factor) for name, factors in state.origins.items() for factor in factors)
    yield from ((name, value) for name, kept in state.optimizer.items() for value in kept.values())


def _is_plain(value: object) -> bool:
    """Return whether a value is a number, or a tensor that holds one real number after another; sparse ones do not."""
    if not isinstance(value, Tensor):
        return value is None or (isinstance(value, int | float) and abs(value) < math.inf)
    is_odd = value.is_complex() or value.is_quantized or value.is_nested
    return value.layout == torch.strided and value.device.type == "cpu" and not is_odd


def check_values(state: TrainState, parameters: Mapping[str, nn.Parameter], path: Path) -> None:
    """Check that a state has what the parameters of a run need, before it is restored.

    Raises:
        ConfigError: values or averages are missing, of another shape, or not finite; or the optimizer's are not.
    """
    for name, parameter in parameters.items():
        for held in (state.values, state.average):
            value = None if held is None else held.get(name)
            if held is not None and (value is None or value.shape != parameter.shape or not is_finite(value)):
                raise ConfigError(
                    f"{path} is damaged: {name} must have finite values of shape {tuple(parameter.shape)}. {_INSTEAD}"
                )
        kept = [value for value in state.optimizer.get(name, {}).values() if isinstance(value, Tensor)]
        if not all(map(is_finite, kept)):
            raise ConfigError(f"{path} is damaged: the optimizer's values of {name} are not finite. {_INSTEAD}")


def check_identity(state: TrainState, identity: Mapping[str, Any], path: Path) -> None:
    """Check that a state belongs to this run.

    Raises:
        ConfigError: the state is from another run; names the first key that differs, with both values.
    """
    for key, value in identity.items():
        held = state.identity.get(key)
        if held != value:
            raise ConfigError(
                f"{path} is the state of another run: {key} was {held!r} and is now {value!r}. Choose another "
                "save_ckpt_path, or move that run away. To continue training its LoRA, use lora_weights_path."
            )


def changed_keys(state: TrainState, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the other differences from the run that wrote the state: key -> `key: before -> now`."""
    return {
        key: f"{key}: {state.config.get(key)} -> {value}"
        for key, value in config.items()
        if state.config.get(key) != value
    }


def unsharded(value: Tensor) -> Tensor:
    """Gather the shards of a tensor; every process must call this."""
    value = value.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return a tensor on the device of a parameter, with the same sharding."""
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value


def copied(values: Mapping[str, Tensor]) -> Values:
    """Return fp32 copies on the CPU that the run does not change."""
    return {name: unsharded(value).to("cpu", copy=True) for name, value in values.items()}


def optimizer_state(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, dict[str, Any]]:
    """Return an optimizer's state by the names of its parameters."""
    held: Mapping[Tensor, Mapping[str, Any]] = optimizer.state
    return {
        name: {
            key: unsharded(value).to("cpu", copy=True) if isinstance(value, Tensor) else value
            for key, value in held[parameter].items()
        }
        for name, parameter in parameters.items()
        if parameter in held
    }


@torch.no_grad()
def restore(
    state: TrainState, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer, average: Values | None
) -> None:
    """Restore a state into the trainable parameters, in place. A missing average starts from the state's values."""
    held: dict[int, dict[str, Any]] = {}
    index = {parameter: place for place, parameter in enumerate(_in_order(optimizer))}
    for name, parameter in parameters.items():
        parameter.copy_(like(state.values[name], parameter))
        if average is not None:
            average[name].copy_(like((state.average or state.values)[name], parameter))
        if name in state.optimizer:
            kept = state.optimizer[name]
            held[index[parameter]] = {
                key: like(value, parameter) if isinstance(value, Tensor) and value.dim() else value
                for key, value in kept.items()
            }
    optimizer.load_state_dict({"state": held, "param_groups": optimizer.state_dict()["param_groups"]})


def _in_order(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters in the order of their state_dict indices."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
