"""Reduce full statistics, to measure what each part of them contributes."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from lbm_lora.calibration import Statistics
from lbm_lora.factorize import Moment
from lbm_lora.naming import ModuleName


def inputs_alone(statistics: Statistics) -> Statistics:
    """Weight all outputs of all layers equally."""
    equal = {name: Moment(diagonal=torch.ones(layer.shape[0])) for name, layer in statistics.layers.items()}
    traces = {
        name: layer.repeat * statistics.inputs[layer.inputs].trace * layer.shape[0]
        for name, layer in statistics.layers.items()
    }
    return replace(statistics, inputs=dict(statistics.inputs), outputs=equal, gradients=traces)


def one_number(statistics: Statistics) -> Statistics:
    """Weight all outputs of a layer equally, but layers differently."""
    outputs = {
        name: Moment(diagonal=torch.full((moment.size,), moment.trace / moment.size))
        for name, moment in statistics.outputs.items()
    }
    return replace(statistics, inputs=dict(statistics.inputs), outputs=outputs)


def diagonal(statistics: Statistics, *sides: str) -> Statistics:
    """Keep only the variances of `inputs`, of the sensitivities of `outputs`, or of both."""
    return replace(statistics, **{side: _variances(getattr(statistics, side)) for side in sides})


REDUCED: Mapping[str, Callable[[Statistics], Statistics]] = {
    "inputs": inputs_alone,
    "number": one_number,
    "diagonal_inputs": lambda statistics: diagonal(statistics, "inputs"),
    "diagonal_outputs": lambda statistics: diagonal(statistics, "outputs"),
    "diagonal": lambda statistics: diagonal(statistics, "inputs", "outputs"),
}
"""Map from a set of LoRAs to the function that derives its statistics from the full ones."""


def _variances(moments: Mapping[ModuleName, Moment]) -> dict[ModuleName, Moment]:
    return {name: Moment(diagonal=moment.variances().float()) for name, moment in moments.items()}
