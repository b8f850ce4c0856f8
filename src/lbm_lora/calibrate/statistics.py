"""What an error in a layer's matrix costs in the network's output: the result of a calibration, as a value."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from lbm_lora.calibrate.checks import Check
from lbm_lora.calibrate.layers import Layer
from lbm_lora.calibrate.settings import FEW_IMAGES, Schedule
from lbm_lora.factorize import RIDGE, Moment, Weights
from lbm_lora.naming import ModuleName

_RIDGE_OF_FEW = 1e-2  # few samples leave more directions unseen


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where statistics come from. Two runs of equal origins give equal statistics.

    Attributes:
        tuned: fingerprint (digest) of the component that was measured.
        images: digest of the pictures.
        count: number of pictures.
        schedule: the timesteps, with their probabilities.
        probes: for each picture and timestep.
        size: square root of the pixel budget; None: the model's own.
        seed: of noise, probes and sketches.
        dense_up_to, sketch_rank: see `Settings`.
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
        inputs: input moments by the layer that `Layer.inputs` names.
        outputs: output sensitivities by layer.
        gradients: the mean squared norm of the gradient of <probe, output> for each layer's weight.
        output_values: mean number of values of the network's output.
        output_energy: mean squared norm of the network's output; an error over it is a relative one.
        origin: what was measured, and how.
        checks: some of the states that were measured, to run a LoRA on.
    """

    layers: Mapping[ModuleName, Layer]
    inputs: Mapping[ModuleName, Moment]
    outputs: Mapping[ModuleName, Moment]
    gradients: Mapping[ModuleName, float]
    output_values: float
    output_energy: float
    origin: Origin
    checks: tuple[Check, ...] = ()

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
