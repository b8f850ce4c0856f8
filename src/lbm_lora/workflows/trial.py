"""A LoRA that is tried before it is written: run on states and pictures, against the tuned model's outputs."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lbm_lora.calibrate import Check
from lbm_lora.checkpoint import Component
from lbm_lora.extract import Outcome
from lbm_lora.imaging.files import read_image
from lbm_lora.imaging.metrics import psnr
from lbm_lora.infer.comparison import relative_error
from lbm_lora.infer.pipeline import encode_sources, to_model_size
from lbm_lora.model import bridge
from lbm_lora.model.build import load_model
from lbm_lora.naming import ParamName
from lbm_lora.progress import Progress

_FLOOR = 1e-9  # a relative error that counts as none: fp32 ends at 1e-7


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """PSNR of decoded one-step pictures to the tuned model's, dB; infinite for equal ones.

    Attributes:
        psnrs: (name, dB) of each picture.
    """

    psnrs: tuple[tuple[str, float], ...]

    @property
    def worst(self) -> tuple[str, float]:
        return min(self.psnrs, key=lambda entry: entry[1])

    @property
    def mean(self) -> float:
        return math.fsum(decibel for _, decibel in self.psnrs) / len(self.psnrs)


class Trial:
    """One network in fp32 that was the tuned model, and takes deltas to the base to be compared with it.

    Pictures are decoded with the tuned model's VAE on both sides.

    Args:
        tuned: the tuned checkpoint.
        base: the component that deltas are relative to.
        checks: states that the denoiser's outputs are compared at.
        pictures: that one-step results are compared on.
        progress: counts the runs of the network.
    """

    def __init__(
        self,
        tuned: Path,
        base: Component,
        *,
        checks: Sequence[Check],
        pictures: Sequence[Path],
        config_path: Path | None,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self._base, self._checks, self._progress = base, checks, progress
        progress.start(0, "loading the tuned model")
        self._model = load_model(tuned, config_path=config_path, device=device, dtype=torch.float32)
        progress.start(len(checks) + len(pictures), "running the tuned model")
        self._wanted = [self._answer(check.state, check.timestep) for check in checks]
        self._names = [path.name for path in pictures]
        self._latents = [
            encode_sources(self._model, to_model_size(self._model, read_image(path))).cpu() for path in pictures
        ]
        self._targets = [self._picture(latent) for latent in self._latents]

    def take(self, outcomes: Iterable[Outcome] = ()) -> None:
        """Make the network the base with what the outcomes store."""
        parameters = dict(self._model.denoiser.named_parameters())
        for outcome in outcomes:
            stored = outcome.module.delta() if outcome.module is not None else outcome.dense
            if outcome.row.name in parameters:
                self._put(parameters.pop(outcome.row.name), outcome.row.name, stored)
        for name, parameter in parameters.items():
            self._put(parameter, ParamName(name), None)

    def error(self) -> float | None:
        """The typical relative error of the denoiser's output: the geometric mean over the checks, by probability.

        The ordinary mean of squares would be that of the few pictures that come out worst, and differ from one choice
        of pictures to the next by twice as much. None where there are no checks.
        """
        if not self._checks:
            return None
        self._progress.start(len(self._checks), "checking the prediction")
        answers = [self._answer(check.state, check.timestep) for check in self._checks]
        errors = [relative_error(found, wanted) for found, wanted in zip(answers, self._wanted, strict=True)]
        logs = [check.probability * math.log(max(e, _FLOOR)) for check, e in zip(self._checks, errors, strict=True)]
        return math.exp(math.fsum(logs) / math.fsum(check.probability for check in self._checks))

    def pictures(self) -> Pictures | None:
        """None where no pictures were given."""
        if not self._latents:
            return None
        self._progress.start(len(self._latents), "comparing pictures")
        found = [
            psnr(self._picture(latent), target) for latent, target in zip(self._latents, self._targets, strict=True)
        ]
        return Pictures(psnrs=tuple(zip(self._names, found, strict=True)))

    def _put(self, parameter: torch.nn.Parameter, name: ParamName, delta: Tensor | None) -> None:
        """Base + delta. What the base has not, or in another shape, was excluded and stays the tuned model's."""
        if name not in self._base or self._base.specs[name].shape != tuple(parameter.shape):
            return
        values = self._base.read(name).float()  # new, or a view of the file: never written to
        parameter.data = (values if delta is None else values + delta.float()).to(parameter.device)

    @torch.no_grad()
    def _answer(self, state: Tensor, timestep: float) -> Tensor:
        output = self._model.denoise(state, torch.tensor([timestep], dtype=torch.float32))
        self._progress.advance()
        return output.cpu()

    def _picture(self, latent: Tensor) -> Tensor:
        target = bridge.predict_target(latent, 1.0, self._answer(latent, bridge.TRAIN_TIMESTEPS))
        return self._model.decode(target)[0].cpu().clamp(-1, 1)
