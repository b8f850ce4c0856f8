"""Running sums of a calibration, and the file from which an interrupted run resumes."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lbm_lora.calibration.layers import CalledLayer, vectors
from lbm_lora.calibration.statistics import Name, Origin
from lbm_lora.checkpoint import SafetensorsWriter, TensorSpec, open_checkpoint
from lbm_lora.choices import VECTOR_DENSE_UP_TO, VECTOR_SKETCH_RANK
from lbm_lora.errors import ConfigError, Option
from lbm_lora.factorize import MomentAccumulator
from lbm_lora.naming import ModuleName, ParamName

_TOTALS = "totals"
_GRADIENTS = "gradients"
_ORIGIN_KEY = "lbm_lora_partial_statistics"


@dataclass(kw_only=True)
class Sums:
    """Sums over images; the timesteps of an image are weighted by their probability.

    Attributes:
        inputs: sums of x x^T, averaged over token positions, by the layer that `CalledLayer.inputs` names.
        outputs: sums of g g^T, summed over token positions and averaged over probes, by layer.
        gradients: sums of the squared norm of the gradient of <probe, output> for each layer's weight.
        vectors: sums of g g^T of the gradient g of <probe, output> for each vector, averaged over probes.
        values: sum of the number of values of the network's output.
        energy: sum of the squared norm of the network's output.
    """

    inputs: dict[ModuleName, MomentAccumulator]
    outputs: dict[ModuleName, MomentAccumulator]
    gradients: dict[ModuleName, float]
    vectors: dict[ParamName, MomentAccumulator]
    images: int = 0
    values: float = 0.0
    energy: float = 0.0

    @classmethod
    def empty(
        cls, layers: Mapping[ModuleName, CalledLayer], network: nn.Module, origin: Origin, device: torch.device
    ) -> "Sums":
        """Return zeros for each of the layers, and of the network's vectors."""
        zeros = partial(
            MomentAccumulator,
            dense_up_to=origin.dense_up_to,
            sketch_rank=origin.sketch_rank,
            seed=origin.seed,
            device=device,
        )
        narrow = partial(zeros, dense_up_to=VECTOR_DENSE_UP_TO, sketch_rank=VECTOR_SKETCH_RANK)
        whole = origin.conv_dense_up_to
        return cls(
            inputs={
                name: zeros(one.columns, dense_up_to=whole) if one.repeat > 1 and whole else zeros(one.shape[1])
                for name, one in layers.items()
                if one.inputs == name
            },
            outputs={name: zeros(layer.shape[0]) for name, layer in layers.items()},
            gradients=dict.fromkeys(layers, 0.0),
            vectors={name: narrow(vector.numel()) for name, vector in vectors(network)},
        )

    def state(self) -> dict[str, Tensor]:
        """Return all sums by name. The tensors of the moments are the sums themselves, not copies."""
        return {
            **_packed("inputs", self.inputs),
            **_packed("outputs", self.outputs),
            **_packed("vectors", self.vectors),
            _GRADIENTS: torch.tensor(list(self.gradients.values()), dtype=torch.float64),
            _TOTALS: torch.tensor([self.images, self.values, self.energy], dtype=torch.float64),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "Sums":
        """Invert `state`; summing continues in the given tensors."""
        outputs = _unpacked(ModuleName, "outputs", state)
        images, values, energy = state[_TOTALS].tolist()
        return cls(
            inputs=_unpacked(ModuleName, "inputs", state),
            outputs=outputs,
            gradients=dict(zip(outputs, state[_GRADIENTS].tolist(), strict=True)),
            vectors=_unpacked(ParamName, "vectors", state),
            images=int(images),
            values=values,
            energy=energy,
        )


class PartialFile:
    """File of sums next to the output; removed once the output is written.

    Args:
        output: path of the statistics; `S.safetensors` has its sums in `S.partial.safetensors`.
    """

    def __init__(self, output: Path, *, overwrite: bool = False) -> None:
        self.overwrite = overwrite
        self.path = output.with_name(f"{output.stem}.partial.safetensors")

    def load(self, origin: Origin, device: torch.device) -> Sums | None:
        """Return the saved sums of a run with the same origin; None if there are none, or if they may be replaced."""
        if not self.path.exists():
            return None
        with open_checkpoint(self.path) as file:
            if file.metadata.get(_ORIGIN_KEY) == _identity(origin):
                return Sums.from_state({key: file.read(key).to(device, copy=True) for key in file.specs})
        if self.overwrite:
            return None
        raise ConfigError(
            f"{self.path} holds the unfinished sums of a calibration with other inputs or settings. Run that one again "
            "to finish it, move the file, or use ",
            Option("overwrite"),
            " to replace it.",
        )

    def save(self, sums: Sums, origin: Origin) -> None:
        """Write the sums atomically."""
        state = sums.state()
        specs = {key: TensorSpec.of(tensor) for key, tensor in state.items()}
        with SafetensorsWriter(self.path, specs, metadata={_ORIGIN_KEY: _identity(origin)}) as writer:
            for key, tensor in state.items():
                writer.write(key, tensor)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _identity(origin: Origin) -> str:
    return json.dumps(asdict(origin))


def _packed(side: str, accumulators: Mapping[Name, MomentAccumulator]) -> dict[str, Tensor]:
    """Return tensors by key: `inputs.MODULE.dense` and so on."""
    parts = ((name, accumulator.state()) for name, accumulator in accumulators.items())
    return {f"{side}.{name}.{key}": tensor for name, state in parts for key, tensor in state.items()}


def _unpacked(name_of: Callable[[str], Name], side: str, state: Mapping[str, Tensor]) -> dict[Name, MomentAccumulator]:
    parts: defaultdict[Name, dict[str, Tensor]] = defaultdict(dict)
    for full_key, tensor in state.items():
        if full_key.startswith(f"{side}."):
            name, _, key = full_key.removeprefix(f"{side}.").rpartition(".")
            parts[name_of(name)][key] = tensor
    return {name: MomentAccumulator.from_state(part) for name, part in parts.items()}
