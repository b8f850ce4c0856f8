"""Try a LoRA before it is written: run it at points and on images against the tuned model's outputs."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lbm_lora.adapter import StoredDelta
from lbm_lora.checkpoint import CheckpointLike, Component
from lbm_lora.fidelity.answers import outputs_at
from lbm_lora.fidelity.checks import Check, trial_errors
from lbm_lora.fidelity.network import put_deltas
from lbm_lora.fidelity.output_errors import relative_error
from lbm_lora.fidelity.points import Point, image_latent
from lbm_lora.imaging.metrics import psnr
from lbm_lora.model import bridge
from lbm_lora.model.build import load_model
from lbm_lora.progress import Progress
from lbm_lora.ranks import TrialErrors, TrialImages

_TOGETHER = 8
"""Points that a large network is run at together."""

_FEW = {"held": 2, "larger": 0}
"""Points that a large network on a CPU is run at by kind, 1 of others: each takes it seconds, larger ones most."""


class LoraTrial:
    """Network in fp32 that starts as the tuned model, then takes base + deltas for comparison with it.

    It implements `Trial` of `lbm_lora.ranks`. Images are decoded with the tuned model's VAE on both sides.

    Args:
        tuned: the tuned checkpoint; the base itself if `wanted` makes it the model to compare with.
        checks: points at which the denoiser's outputs are compared with those that the tuned model gave there.
        wanted: deltas on the base that take the place of the tuned model: those of a LoRA to be resized.
    """

    def __init__(
        self,
        tuned: CheckpointLike,
        base: Component,
        *,
        checks: Sequence[Check],
        images: Sequence[Path],
        config_path: Path | None,
        device: torch.device,
        progress: Progress,
        wanted: Iterable[StoredDelta] | None = None,
    ) -> None:
        self._base, self._progress = base, progress
        self._checks = [(check, check.point) for check in checks if check.point is not None]
        progress.start(0, "loading the tuned model" if wanted is None else "loading the base")
        self._model = load_model(tuned, config_path=config_path, device=device, dtype=torch.float32, is_streamed=True)
        if self._model.streamed:
            self._checks = _few(self._checks)
        if wanted is not None:
            self.take(wanted)
        self._wanted = [check.wanted for check, _ in self._checks]
        count = len(images) + (0 if wanted is None else len(self._checks))
        progress.start(count, "running the tuned model" if wanted is None else "running the LoRA")
        if wanted is not None:
            self._wanted = self._outputs()
        self._names = [path.name for path in images]
        self._latents = [image_latent(self._model, path).cpu() for path in images]
        self._targets = [self._image(latent) for latent in self._latents]

    @property
    def has_points(self) -> bool:
        """Whether there are points to measure an error at."""
        return any(check.kind == "held" for check, _ in self._checks)

    def take(self, deltas: Iterable[StoredDelta] = ()) -> None:
        """Set the network to the base plus these deltas."""
        put_deltas(self._model.denoiser, self._base, deltas, streamed=self._model.streamed)

    def error(self) -> TrialErrors | None:
        """Return the relative errors of the denoiser's output; None if there are no held points."""
        if not self.has_points:
            return None
        self._progress.start(len(self._checks), "checking the prediction")
        pairs = zip(self._outputs(), self._wanted, strict=True)
        errors = [relative_error(output, wanted) for output, wanted in pairs]
        return trial_errors([check for check, _ in self._checks], errors)

    def images(self) -> TrialImages | None:
        """Return the PSNR of the one-step images against the tuned model's; None if no images were given."""
        if not self._latents:
            return None
        self._progress.start(len(self._latents), "comparing images")
        found = [psnr(self._image(latent), target) for latent, target in zip(self._latents, self._targets, strict=True)]
        return TrialImages(psnrs=tuple(zip(self._names, found, strict=True)))

    def _outputs(self) -> list[Tensor]:
        """Return the outputs at the checks, in their order: of several at once if that saves making weights."""
        found: dict[int, Tensor] = {}
        count = _TOGETHER if self._model.streamed else 1
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, (_, point) in enumerate(self._checks):
            by_shape.setdefault(tuple(point.state.shape), []).append(index)
        for same in by_shape.values():
            for start in range(0, len(same), count):
                part = same[start : start + count]
                outputs = outputs_at(self._model, [self._checks[index][1] for index in part])
                found |= zip(part, outputs.split(1), strict=True)
                self._progress.advance(len(part))
        return [found[index] for index in range(len(self._checks))]

    def _image(self, latent: Tensor) -> Tensor:
        source = Point(timestep=bridge.TRAIN_TIMESTEPS, probability=1.0, state=latent)
        output = outputs_at(self._model, [source])
        self._progress.advance()
        target = bridge.predict_target(latent, 1.0, output)
        return self._model.decode(target)[0].cpu().clamp(-1, 1)


def _few(checks: Sequence[tuple[Check, Point]]) -> list[tuple[Check, Point]]:
    found: list[tuple[Check, Point]] = []
    for kind in dict.fromkeys(check.kind for check, _ in checks):
        same = [pair for pair in checks if pair[0].kind == kind]
        count = min(_FEW.get(kind, 1), len(same))
        found += [same[index * len(same) // count] for index in range(count)]
    return found
