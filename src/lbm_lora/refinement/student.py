"""A base with a trainable LoRA that learns a tuned model's outputs."""

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
from lbm_lora.model.streamed_weights import LARGE
from lbm_lora.naming import ParamName
from lbm_lora.training.lora import DOWN, UP, PlannedLora, TrainPlan, export_adapter, inject_plan, layout_of, modules_in


class Student:
    """The base with a fully trainable LoRA.

    Args:
        model: model of the base; it is changed in place.
    """

    def __init__(self, model: LBMModel, given: Adapter, dtype: torch.dtype) -> None:
        self._model, self._given, self._dtype = model, given, dtype
        modules_in(layout_of(model.denoiser), given)  # refuses modules that cannot take a LoRA
        loras = (
            PlannedLora(name=name, rank=one.rank, alpha=one.alpha, is_conv=len(one.shape) > 2, learns=True)
            for name, one in given.modules.items()
        )
        plan = TrainPlan(loras=tuple(loras), dense=tuple(given.dense))
        self._live = inject_plan(model.denoiser, plan, given=given)
        model.denoiser.train()  # gradient checkpointing needs it; the network has no dropout
        if sum(parameter.numel() for parameter in model.denoiser.parameters()) > LARGE:
            model.denoiser.enable_gradient_checkpointing()

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return the trainable parameters by name, in fp32."""
        return self._live.parameters

    def scales(self) -> dict[str, float]:
        """Return the root mean square of each parameter as stored in the file."""
        found: dict[str, float] = {}
        for name, parameter in self.parameters.items():
            base = self._live.base.get(ParamName(name))  # of one that trains as a dense delta
            stored = parameter.detach() if base is None else parameter.detach() - base.float()
            found[name] = float(stored.square().mean().sqrt())
        return found

    def losses(self, answered: Sequence[AnsweredPoint]) -> Float[Tensor, " batch"]:
        """Return the squared relative error at each point, with gradients. All states must have one shape."""
        device, dtype = self._model.device, self._model.dtype
        states = torch.cat([one.point.state for one in answered]).to(device)
        wanted = torch.cat([one.wanted for one in answered]).to(device)
        timesteps = torch.tensor([one.point.timestep for one in answered], dtype=torch.float32)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = self._model.denoise(states, timesteps)
        return squared_errors(output, wanted)

    @torch.no_grad()
    def errors(self, answered: Sequence[AnsweredPoint]) -> OutputErrors:
        """Return the errors of the LoRA as a file would store it now."""
        with self._rounded():
            errors = [math.sqrt(float(self.losses([one]))) for one in answered]
        typical = typical_error(errors, (one.point.probability for one in answered))
        return OutputErrors(typical=typical, worst=max(errors))

    def adapter(self, values: Mapping[str, Tensor] | None = None) -> Adapter:
        """Return the LoRA of the given parameters, rounded to the stored dtype. None: of the current ones."""
        made = export_adapter(self._live, values or self.parameters, self._given.metadata)
        return replace(made.cast(self._dtype), prefix=self._given.prefix)

    @contextmanager
    def _rounded(self) -> Generator[None]:
        """Replace the parameters by their stored values until the block ends."""
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
