"""A base with a LoRA in it that learns a tuned model's outputs."""

import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lbm_lora.adapter import Adapter
from lbm_lora.fidelity.answers import AnsweredPoint
from lbm_lora.fidelity.output_errors import OutputErrors, squared_errors, typical_error
from lbm_lora.model.build import LBMModel
from lbm_lora.naming import ParamName
from lbm_lora.trainable.export import export_adapter
from lbm_lora.trainable.inject import DOWN, UP, inject_plan
from lbm_lora.trainable.layout import PlannedLora, TrainPlan, layout_of, modules_in

_LARGE = 200_000_000  # parameters from which on the activations of a whole backward pass are too many


class Student:
    """The base with a LoRA in it, all of which learns.

    Args:
        model: of the base; it is changed in place.
        given: the LoRA.
        dtype: that its file will have.

    Raises:
        AdapterError: a module of the LoRA is no Linear and no plain Conv2d of the denoiser.
    """

    def __init__(self, model: LBMModel, given: Adapter, dtype: torch.dtype) -> None:
        self._model, self._given, self._dtype = model, given, dtype
        plan = TrainPlan(loras=_all_learn(model.denoiser, given), dense=tuple(given.dense))
        self._live = inject_plan(model.denoiser, plan, given=given)
        model.denoiser.train()  # checkpointed gradients need it; the network has no dropout
        if sum(parameter.numel() for parameter in model.denoiser.parameters()) > _LARGE:
            model.denoiser.enable_gradient_checkpointing()

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What learns, by name, in fp32."""
        return self._live.parameters

    def scales(self) -> dict[str, float]:
        """The root mean square of what the file holds of each parameter."""
        stored = {name: self._stored(name, parameter.detach()) for name, parameter in self.parameters.items()}
        return {name: float(value.square().mean().sqrt()) for name, value in stored.items()}

    def losses(self, answered: Sequence[AnsweredPoint]) -> Float[Tensor, " batch"]:
        """The squared relative error at each point, with gradients. Their states have one shape."""
        device, dtype = self._model.device, self._model.dtype
        states = torch.cat([one.point.state for one in answered]).to(device)
        wanted = torch.cat([one.wanted for one in answered]).to(device)
        timesteps = torch.tensor([one.point.timestep for one in answered], dtype=torch.float32)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = self._model.denoise(states, timesteps)
        return squared_errors(output, wanted)

    @torch.no_grad()
    def errors(self, answered: Sequence[AnsweredPoint]) -> OutputErrors:
        """Those of the LoRA as a file would hold it now."""
        with self._rounded():
            errors = [math.sqrt(float(self.losses([one]))) for one in answered]
        typical = typical_error(errors, (one.point.probability for one in answered))
        return OutputErrors(typical=typical, worst=max(errors))

    def adapter(self) -> Adapter:
        """The LoRA as it is now, rounded to the stored dtype.

        Raises:
            InputError: a value leaves the range of the dtype.
        """
        made = export_adapter(self._live, self.parameters, self._given.metadata)
        return replace(made.cast(self._dtype), prefix=self._given.prefix)

    @contextmanager
    def _rounded(self) -> Generator[None]:
        """The values that the file would hold, until the block ends."""
        learning = self.parameters
        exact = {name: parameter.data for name, parameter in learning.items()}
        try:
            made = self.adapter()
            for name, module in made.modules.items():
                for ending, values in ((DOWN, module.down), (UP, module.up)):
                    learning[name + ending].data = values.to(learning[name + ending])
            for name, delta in made.dense.items():
                parameter, base = learning[name], self._live.base[name].float()
                parameter.data = base + delta.to(base)
            yield
        finally:
            for name, parameter in learning.items():
                parameter.data = exact[name]

    def _stored(self, name: str, value: Tensor) -> Tensor:
        """What a file holds of a parameter: a factor, or the change to the base."""
        base = self._base(name)
        return value if base is None else value - base

    def _base(self, name: str) -> Tensor | None:
        """The base's values of a parameter that learns as a dense delta, fp32."""
        base = self._live.base.get(ParamName(name))
        return None if base is None else base.float()


def _all_learn(denoiser: nn.Module, given: Adapter) -> tuple[PlannedLora, ...]:
    modules_in(layout_of(denoiser), given)  # refuses what takes no LoRA
    return tuple(
        PlannedLora(name=name, rank=module.rank, alpha=module.alpha, is_conv=len(module.shape) > 2, learns=True)
        for name, module in given.modules.items()
    )
