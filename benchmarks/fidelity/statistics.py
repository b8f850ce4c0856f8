"""Statistics that know less, made of whole ones: what each part of them brings."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from lbm_lora.calibration import Statistics
from lbm_lora.factorize import Moment
from lbm_lora.naming import ModuleName


def inputs_alone(statistics: Statistics) -> Statistics:
    """All outputs of all layers count the same."""
    equal = {name: Moment(diagonal=torch.ones(layer.shape[0])) for name, layer in statistics.layers.items()}
    traces = {
        name: layer.repeat * statistics.inputs[layer.inputs].trace * layer.shape[0]
        for name, layer in statistics.layers.items()
    }
    return replace(statistics, inputs=dict(statistics.inputs), outputs=equal, gradients=traces)


def one_number(statistics: Statistics) -> Statistics:
    """The outputs of a layer count the same, and those of one layer other than those of the next."""
    outputs = {
        name: Moment(diagonal=torch.full((moment.size,), moment.trace / moment.size))
        for name, moment in statistics.outputs.items()
    }
    return replace(statistics, inputs=dict(statistics.inputs), outputs=outputs)


def diagonal(statistics: Statistics, *sides: str) -> Statistics:
    """Only the variances of `inputs`, of the sensitivities of `outputs`, or of both."""
    return replace(statistics, **{side: _variances(getattr(statistics, side)) for side in sides})


REDUCED: Mapping[str, Callable[[Statistics], Statistics]] = {
    "inputs": inputs_alone,
    "number": one_number,
    "diagonal_inputs": lambda statistics: diagonal(statistics, "inputs"),
    "diagonal_outputs": lambda statistics: diagonal(statistics, "outputs"),
    "diagonal": lambda statistics: diagonal(statistics, "inputs", "outputs"),
}
"""Name of a set of LoRAs -> the statistics that it is extracted with, out of the full ones."""


def _variances(moments: Mapping[ModuleName, Moment]) -> dict[ModuleName, Moment]:
    return {name: Moment(diagonal=moment.variances().float()) for name, moment in moments.items()}
