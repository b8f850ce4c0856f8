"""What of a model learns, by the configuration, and how its result is written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from lbm_lora.adapter import Adapter, load_adapter, save_adapter
from lbm_lora.apply import check_base, check_fit
from lbm_lora.checkpoint import Checkpoint, Component, Fingerprint
from lbm_lora.errors import WrongBaseError
from lbm_lora.model.build import LBMModel
from lbm_lora.naming import ModuleName
from lbm_lora.train.config import TrainConfig
from lbm_lora.train.export import adapter_metadata, export_adapter, training_facts, write_tuned
from lbm_lora.train.inject import LiveAdapter, Origin, inject_plan
from lbm_lora.train.plan import layout_of, plan_continued, plan_new


@dataclass(frozen=True, eq=False)
class FullModel:
    """A denoiser of which everything learns: the counterpart of `LiveAdapter` for mode full."""

    denoiser: nn.Module = field(repr=False)
    origins: Mapping[ModuleName, Origin] = field(default_factory=dict[ModuleName, Origin])

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter by its param name, in the network's order."""
        return dict(self.denoiser.named_parameters())


Trainee = LiveAdapter | FullModel


def read_given(config: TrainConfig, base: Component, found: Fingerprint) -> Adapter | None:
    """The adapter that training continues, checked against the base.

    Args:
        found: the base's fingerprint.

    Raises:
        AdapterError: the file is no adapter, or does not fit the base.
        WrongBaseError: it was made from another base.
    """
    if config.lora_weights_path is None:
        return None
    adapter = load_adapter(config.lora_weights_path, config.lora_alpha_is)
    check_fit(adapter, {name: spec.shape for name, spec in base.specs.items()})
    try:
        check_base(adapter, base, found=found)
    except WrongBaseError as error:
        # the command has no flag to go on with: a LoRA that is trained on another base belongs to neither
        raise WrongBaseError(f"{str(error).rpartition(' Give its own base')[0]} Give its own base.") from None
    return adapter


def make_trainee(
    model: LBMModel, config: TrainConfig, given: Adapter | None, origins: Mapping[ModuleName, Origin] | None = None
) -> Trainee:
    """Let a fresh model's denoiser learn, as the configuration says.

    Args:
        origins: of the run that is gone on with.

    Raises:
        InputError: of the kind that fits, see `plan_new` and `plan_continued`.
    """
    denoiser: nn.Module = model.denoiser
    if config.mode == "full":
        return train_everything(denoiser)
    layout = layout_of(denoiser)
    plan = plan_new(layout, config) if given is None else plan_continued(layout, config, given)
    return inject_plan(
        denoiser,
        plan,
        given=given,
        init=config.init_lora,
        dropout=config.lora_dropout,
        seed=config.seed,
        origins=origins,
    )


def train_everything(denoiser: nn.Module) -> FullModel:
    """Let all parameters learn, in fp32, apart from the file that they were read from."""
    for parameter in denoiser.parameters():
        parameter.data = parameter.data.float().clone()
        parameter.requires_grad_(True)
    return FullModel(denoiser)


@dataclass(frozen=True, kw_only=True, eq=False)
class ResultWriter:
    """Writes what a run has learnt: a LoRA, or in mode full a checkpoint.

    Attributes:
        base: the open file of the base.
        fingerprint: of its denoiser.
    """

    model: LBMModel
    trainee: Trainee
    config: TrainConfig
    base: Checkpoint
    fingerprint: Fingerprint

    def __call__(self, values: Mapping[str, Tensor], step: int, path: Path) -> None:
        """Write the values of what learns after a step, atomically."""
        if isinstance(self.trainee, FullModel):
            write_tuned(path, self.base, self.model.config, values, training_facts(self.config, step))
        else:
            metadata = adapter_metadata(self.fingerprint, self.trainee, self.config, step)
            save_adapter(export_adapter(self.trainee, values, metadata), path)
