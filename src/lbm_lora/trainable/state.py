"""What a stopped run goes on from: megabytes of what learns, never the base.

Everything that is drawn in a run depends on (seed, epoch, sample) or (seed, step, rank), and the learning rate on the
step. So the position stands for the random numbers and the schedule as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lbm_lora.atomic import atomic_path
from lbm_lora.errors import ConfigError
from lbm_lora.missing_path import not_there
from lbm_lora.naming import ModuleName
from lbm_lora.trainable.inject import InitialFactors

try:
    from torch.distributed.tensor import DTensor, distribute_tensor
except ImportError:  # torch < 2.5
    from torch.distributed._tensor import DTensor, distribute_tensor

FORMAT = 1
Values = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Attributes:
    step: optimizer steps that are done.
    epoch, batch: the next batch of the data.
    values: what learns, by name, fp32.
    optimizer: name -> what the optimizer keeps of it.
    average: the moving average, where there is one.
    origins: module -> (down, up) of its `InitialFactors`.
    best: the best metric so far, in which larger is better.
    best_step: the step that it was measured after.
    validated: the last step after which there was a validation; -1 for none.
    identity: what must be the same for the state to be of use.
    config: all keys, to say what has changed.

    The names of the fields are the keys of the file.
    """

    step: int
    epoch: int
    batch: int
    values: Values
    optimizer: dict[str, dict[str, Any]]
    average: Values | None
    origins: dict[str, tuple[Tensor, Tensor]]
    best: float | None
    best_step: int | None
    validated: int
    identity: dict[str, Any]
    config: dict[str, Any]
    format: int = field(default=FORMAT)

    def initial_factors(self) -> dict[ModuleName, InitialFactors]:
        """`origins` by module name."""
        return {ModuleName(name): InitialFactors(down, up) for name, (down, up) in self.origins.items()}


def save_state(state: TrainState, path: Path) -> None:
    """Write the state, atomically."""
    held = {entry.name: getattr(state, entry.name) for entry in fields(state)}
    with atomic_path(path) as temporary:
        torch.save(held, temporary)


def load_state(path: Path) -> TrainState:
    """Read a state.

    Raises:
        ConfigError: the file cannot be read, or is not a state of this format.
    """
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(not_there(path, (path.suffix,))) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except Exception as error:  # a damaged pickle may raise nearly anything (documentation of pickle)
        raise ConfigError(f"{path} is not the state of a training run ({type(error).__name__}). Remove it.") from None
    entries = cast(dict[str, Any], held) if isinstance(held, dict) else {}
    if entries.get("format") != FORMAT:
        raise ConfigError(f"{path} is not a state of this version's format. Start anew in another save_ckpt_path.")
    return TrainState(**entries)


def check_identity(state: TrainState, identity: Mapping[str, Any], path: Path) -> None:
    """Raises:
    ConfigError: the state is of another run; the first key that differs is named with both values.
    """
    for key, value in identity.items():
        held = state.identity.get(key)
        if held != value:
            raise ConfigError(
                f"{path} is the state of another run: {key} is {held!r} there and {value!r} now. Choose another "
                "save_ckpt_path, or move that run away. To train its LoRA further otherwise: lora_weights_path."
            )


def changed_keys(state: TrainState, config: Mapping[str, Any]) -> list[str]:
    """What else differs from the run that wrote the state, as `key: before -> now`."""
    return [
        f"{key}: {state.config.get(key)} -> {value}" for key, value in config.items() if state.config.get(key) != value
    ]


def unsharded(value: Tensor) -> Tensor:
    """A tensor with all its shards; every process must take part."""
    value = value.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A tensor on the device of a parameter, and sharded as it is."""
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value


def copied(values: Mapping[str, Tensor]) -> Values:
    """fp32 copies on the CPU that the run does not change any more."""
    return {name: unsharded(value).to("cpu", copy=True) for name, value in values.items()}


def optimizer_state(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, dict[str, Any]]:
    """What an optimizer keeps, by the names of its parameters."""
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
    """Put a state back into what learns, in place. An average that the state does not have starts from its values."""
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
    """Parameters by the numbers that a state_dict gives them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
