"""Check the machine, or what a command would need: the verb `doctor`."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lbm_lora.configs.doctor import DoctorConfig
from lbm_lora.configs.train import TrainRunConfig
from lbm_lora.errors import LbmLoraError, QualityError, plural
from lbm_lora.machine import Check, Message, machine_checks
from lbm_lora.machine.check import check
from lbm_lora.progress import SILENT, Progress


@dataclass(frozen=True, kw_only=True)
class CommandNeeds:
    """What a command would need.

    Attributes:
        name: the command.
        memory: expected bytes of memory; None if no measured rule covers it.
        disk: expected bytes of its outputs, as far as they are known.
    """

    name: str
    checks: tuple[Check, ...]
    memory: int | None
    disk: int


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """State of the machine, and the needs of a command if one was given."""

    machine: tuple[Check, ...]
    command: CommandNeeds | None = None

    @property
    def problems(self) -> int:
        """Number of problems; 0 if everything can run."""
        checks = (*self.machine, *(self.command.checks if self.command else ()))
        return sum(one.level == "problem" for one in checks)

    @property
    def failures(self) -> tuple[QualityError, ...]:
        """A sentence if there is a problem."""
        return (QualityError(f"{plural(self.problems, 'problem')} found."),) if self.problems else ()


def run(config: DoctorConfig, progress: Progress = SILENT) -> Diagnosis:
    """Check the machine, and a command if one is given. Nothing is written, fetched or computed."""
    progress.start(0, "looking")
    command = None if config.parsed is None else needs_of(config.parsed)
    return Diagnosis(machine=machine_checks(), command=command)


def needs_of(config: Any) -> CommandNeeds:
    """Return what a command would need.

    Args:
        config: the config of the command.
    """
    from lbm_lora.workflows.needs.inputs import inputs_of
    from lbm_lora.workflows.needs.memory import memory_of
    from lbm_lora.workflows.needs.outputs import Output, outputs_of
    from lbm_lora.workflows.needs.refusals import memory_check_of, refusal_checks
    from lbm_lora.workflows.needs.room import output_checks

    name = type(config).__module__.rpartition(".")[2]
    checks: list[Check] = []
    if isinstance(config, TrainRunConfig):
        from lbm_lora.training.settings.train_config import read_train_config

        try:
            config = read_train_config(config.path_config, config.overrides)
        except LbmLoraError as error:
            refused = check("training file", "cannot be used", level="problem", remedy=Message.of(error))
            return CommandNeeds(name=name, checks=(refused,), memory=None, disk=0)
        checks.append(check("training file", "read, all keys valid"))
    inputs = inputs_of(config)
    outputs: list[Output] = []
    try:
        outputs = outputs_of(name, config, inputs)
    except (LbmLoraError, OSError) as error:
        checks.append(check("options", "refused", level="problem", remedy=Message.of(error)))
    memory = memory_of(name, config, inputs)
    checks += [
        *inputs.checks,
        *refusal_checks(name, config, inputs),
        *output_checks(config, outputs, inputs),
        memory_check_of(name, config, inputs),
    ]
    disk = sum(one.nbytes or 0 for one in outputs)
    return CommandNeeds(name=name, checks=_once(checks), memory=memory.nbytes, disk=disk)


def _once(checks: Iterable[Check]) -> tuple[Check, ...]:
    """Checks without a second problem of the same remedy: two checks may find the same one."""
    seen: set[Message] = set()
    kept: list[Check] = []
    for one in checks:
        if one.level == "problem" and one.remedy in seen:
            continue
        seen.add(one.remedy)
        kept.append(one)
    return tuple(kept)
