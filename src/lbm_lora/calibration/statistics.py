"""What an error in a layer's matrix costs in the network's output: how it is measured, and the result as a value."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from lbm_lora.calibration.layers import CalledLayer
from lbm_lora.configs.values import DENSE_UP_TO, SKETCH_RANK, SMALLEST_SIZE
from lbm_lora.errors import ConfigError
from lbm_lora.factorize import RIDGE, Moment, Weights
from lbm_lora.fidelity.points import Point
from lbm_lora.model.schedule import Schedule
from lbm_lora.naming import ModuleName

FEW_IMAGES = 16
"""Below this many images, each gets more probes, and roots of the moments a larger ridge."""

_PROBES_OF_FEW = 4
_RIDGE_OF_FEW = 1e-2  # few samples leave more directions unseen


@dataclass(frozen=True, kw_only=True)
class CalibrationSettings:
    """How statistics are collected.

    Attributes:
        timesteps: some of those that the model was trained on; none: all of them.
        probes: random directions of the output for each image and timestep; None: 4 for fewer than 16 images, else 1.
        size: square root of the images' pixel budget; None: the model's own.
        seed: for bridge noise, probes and sketches.
        dense_up_to: the widest layer side whose moment is kept whole; 4 * width^2 bytes.
        sketch_rank: columns of the sketch that wider sides get.

    Raises:
        ConfigError: a value that cannot be.
    """

    timesteps: tuple[float, ...] = ()
    probes: int | None = None
    size: int | None = None
    seed: int = 0
    dense_up_to: int = DENSE_UP_TO
    sketch_rank: int = SKETCH_RANK

    def __post_init__(self) -> None:
        if self.probes is not None and self.probes < 1:
            raise ConfigError(f"{self.probes} probes measure no sensitivities. Use 1 or more.")
        if self.size is not None and self.size < SMALLEST_SIZE:
            raise ConfigError(f"size {self.size} is too small for the buckets. Use {SMALLEST_SIZE} or more.")
        if self.dense_up_to < 0 or self.sketch_rank < 0:
            raise ConfigError(
                f"dense_up_to {self.dense_up_to} and sketch_rank {self.sketch_rank} must not be negative."
            )

    def probes_for(self, images: int) -> int:
        """Probes for each image and timestep where there are so many images."""
        return self.probes or (_PROBES_OF_FEW if images < FEW_IMAGES else 1)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where statistics come from. Two runs of equal origins give equal statistics.

    Attributes:
        tuned: fingerprint (digest) of the component that was measured.
        images: digest of the images.
        count: number of images.
        schedule: the timesteps, with their probabilities.
        probes: for each image and timestep.
        size: square root of the pixel budget; None: the model's own.
        seed: of noise, probes and sketches.
        dense_up_to, sketch_rank: see `CalibrationSettings`.
        dtype: that the network ran in.
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics(Mapping[ModuleName, Weights]):
    """The weights of each layer's delta. Moments are made or read when a layer is asked for, and not kept.

    Attributes:
        layers: the measured layers, in the order of their calls.
        inputs: input moments by the layer that `CalledLayer.inputs` names.
        outputs: output sensitivities by layer.
        gradients: the mean squared norm of the gradient of <probe, output> for each layer's weight.
        output_values: mean number of values of the network's output.
        output_energy: mean squared norm of the network's output; an error over it is a relative one.
        origin: what was measured, and how.
        check_points: some of the points that were measured, to run a LoRA at.
        image_digests: of each image (see `imaging.digests`); a file keeps the first 512, and earlier files have none.
    """

    layers: Mapping[ModuleName, CalledLayer]
    inputs: Mapping[ModuleName, Moment]
    outputs: Mapping[ModuleName, Moment]
    gradients: Mapping[ModuleName, float]
    output_values: float
    output_energy: float
    origin: Origin
    check_points: tuple[Point, ...] = ()
    image_digests: tuple[str, ...] = ()

    def __getitem__(self, name: ModuleName) -> Weights:
        """The weights of one layer: the squared change of the network's output, summed over its values, that an error
        E in the layer's matrix causes in the mean over images and timesteps is about scale * tr(G E C E^T).

        Raises:
            KeyError: the layer was not measured.
        """
        layer = self.layers[name]
        inputs, outputs = replace(self.inputs[layer.inputs], repeat=layer.repeat), self.outputs[name]
        apart = inputs.trace * outputs.trace
        scale = self.gradients[name] / apart if apart > 0 else 0.0
        ridge = _RIDGE_OF_FEW if self.origin.count < FEW_IMAGES else RIDGE
        return Weights(inputs=inputs, outputs=outputs, ridge=ridge, scale=scale or 1.0)

    def __iter__(self) -> Iterator[ModuleName]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)
