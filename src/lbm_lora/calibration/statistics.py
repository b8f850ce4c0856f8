"""Settings and results of a calibration: what an error in a layer's matrix costs in the network's output."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch

from lbm_lora.calibration.layers import CalledLayer
from lbm_lora.checkpoint import dtype_name
from lbm_lora.choices import CONV_DENSE_UP_TO, DENSE_UP_TO, SKETCH_RANK
from lbm_lora.errors import plural
from lbm_lora.factorize import RIDGE, Moment, Weights
from lbm_lora.fidelity.checks import Check
from lbm_lora.model.schedule import Schedule
from lbm_lora.naming import ModuleName, ParamName

FEW_IMAGES = 16
"""With fewer images than this, each gets more probes and the roots of the moments get a larger ridge."""

_PROBES_OF_FEW = 4
_RIDGE_OF_FEW = 1e-2  # few samples leave more directions uncovered


@dataclass(frozen=True, kw_only=True)
class CalibrationSettings:
    """Settings for collecting statistics.

    Attributes:
        timesteps: a subset of the trained timesteps; empty: all of them.
        probes: random directions of the output per image and timestep; None: 4 for fewer than 16 images, else 1.
        size: square root of the images' pixel budget; None: the model's own.
        dense_up_to: the widest layer side with a dense moment; 4 * width^2 bytes.
        conv_dense_up_to: the most inputs that a conv's kernel covers, in * kh * kw, with a dense moment; more get a
            sketch. 0: moments cover the channels only, and positions of the kernel count as uncorrelated.
    """

    timesteps: tuple[float, ...] = ()
    probes: int | None = None
    size: int | None = None
    seed: int = 0
    dense_up_to: int = DENSE_UP_TO
    sketch_rank: int = SKETCH_RANK
    conv_dense_up_to: int = CONV_DENSE_UP_TO

    def probes_for(self, images: int) -> int:
        """Return the probes per image and timestep for this number of images."""
        return self.probes or (_PROBES_OF_FEW if images < FEW_IMAGES else 1)

    def origin(
        self,
        *,
        tuned: str,
        count: int,
        dtype: torch.dtype,
        images: str = "",
        schedule: Schedule = (),
        around: str = "",
    ) -> "Origin":
        """Return the origin of statistics that are measured with these settings."""
        return Origin(
            tuned=tuned,
            images=images,
            count=count,
            schedule=schedule,
            probes=self.probes_for(count),
            size=self.size,
            seed=self.seed,
            dense_up_to=self.dense_up_to,
            sketch_rank=self.sketch_rank,
            dtype=dtype_name(dtype),
            conv_dense_up_to=self.conv_dense_up_to,
            around=around,
        )


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Origin of statistics. Two runs of equal origin give equal statistics.

    Attributes:
        tuned: fingerprint (digest) of the measured component.
        images: digest of the images; empty for a network that was not measured on images.
        count: number of images or samples; those that `held_out` names are not in the moments.
        conv_dense_up_to: see `CalibrationSettings`; 0 for files of format 1.
        around: digest of what the images pass besides the measured component: the VAE, and the model's configuration;
            empty for a network that was not measured on images, and in older files.
    """

    tuned: str
    images: str
    count: int
    schedule: Schedule
    probes: int
    size: int | None
    seed: int
    dense_up_to: int
    sketch_rank: int
    dtype: str
    conv_dense_up_to: int = 0
    around: str = ""


Name = TypeVar("Name", ModuleName, ParamName)


class LazyMoments(Mapping[Name, Moment]):
    """Moments by name, each computed or read on access: all at once would take too much memory."""

    def __init__(self, names: Collection[Name], moment_of: Callable[[Name], Moment]) -> None:
        self._names, self._moment_of = names, moment_of

    def __getitem__(self, name: Name) -> Moment:
        if name not in self._names:
            raise KeyError(name)
        return self._moment_of(name)

    def __iter__(self) -> Iterator[Name]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics(Mapping[ModuleName, Weights]):
    """Weights of each layer's delta. Moments are computed or read on access, and not kept.

    Attributes:
        inputs: input moments by the layer that `CalledLayer.inputs` names.
        outputs: output sensitivities by layer.
        gradients: mean squared norm of the gradient of <probe, output> for each layer's weight.
        output_values: mean number of values of the network's output.
        output_energy: mean squared norm of the network's output; divides errors to make them relative.
        vectors: second moment M of the gradient of <probe, output> for each vector, such as a bias, that reaches the
            output: an error e in it changes the output, in summed squares, by about e^T M e. Older files have none.
        checks: inputs that are not in the moments, to run a LoRA at.
        image_digests: digest of each image (see `imaging.digests`); a file keeps the first 512, and older files none.
        unmeasured: modules whose weight is not used as a matrix, with the reason, as in `layers.unmeasured`. Their
            deltas stay dense.
        path: the file that the moments are read from; None if they are in memory.
    """

    layers: Mapping[ModuleName, CalledLayer]
    inputs: Mapping[ModuleName, Moment]
    outputs: Mapping[ModuleName, Moment]
    gradients: Mapping[ModuleName, float]
    output_values: float
    output_energy: float
    origin: Origin
    vectors: Mapping[ParamName, Moment] = field(default_factory=dict[ParamName, Moment])
    checks: tuple[Check, ...] = ()
    image_digests: tuple[str, ...] = ()
    unmeasured: Mapping[ModuleName, str] = field(default_factory=dict[ModuleName, str])
    path: Path | None = None

    def __repr__(self) -> str:
        """Return `<Statistics: 794 layers, 64 images>`, with samples in the place of images for other networks."""
        what = "image" if self.origin.images else "sample"
        return f"<Statistics: {plural(len(self.layers), 'layer')}, {plural(self.origin.count, what)}>"

    def __getitem__(self, name: ModuleName) -> Weights:
        """Return the weights of one layer.

        An error E in its matrix changes the network's output, in summed squares and averaged over images and timesteps,
        by about scale * tr(G E C E^T).
        """
        layer = self.layers[name]
        inputs, outputs = self.inputs[layer.inputs], self.outputs[name]
        inputs = replace(inputs, repeat=layer.columns // inputs.size)
        apart = inputs.trace * outputs.trace
        scale = self.gradients[name] / apart if apart > 0 else 0.0
        ridge = _RIDGE_OF_FEW if self.origin.count < FEW_IMAGES else RIDGE
        return Weights(inputs=inputs, outputs=outputs, ridge=ridge, scale=scale or 1.0)

    def shrunk(self, name: ModuleName, ridge: float) -> Weights:
        """Return the weights of one layer with another ridge r: C and G become (1 - s) C + s (tr C / n) I.

        s is r / (1 + r), so that the cost of an average error stays the same.
        """
        found = self[name]
        return replace(found, ridge=ridge, scale=found.scale / (1 + ridge) ** 2)

    def __iter__(self) -> Iterator[ModuleName]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)
