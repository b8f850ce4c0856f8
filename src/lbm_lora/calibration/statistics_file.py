"""Write and read statistics as a `.safetensors` file, moment by moment.

A dense moment is symmetric: its upper triangle is stored, row by row. Keys are `inputs.MODULE.triangle`,
`outputs.MODULE.diagonal`, `outputs.MODULE.factor`, and `checks.0` and so on for the check points; everything else is
JSON in the header.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lbm_lora.blocks import is_finite
from lbm_lora.calibration.layers import CalledLayer
from lbm_lora.calibration.statistics import Origin, Statistics
from lbm_lora.checkpoint import STATISTICS_KEY, Checkpoint, SafetensorsWriter, TensorSpec, kind_of, open_checkpoint
from lbm_lora.errors import CheckpointError
from lbm_lora.factorize import Moment
from lbm_lora.fidelity.points import Point
from lbm_lora.imaging.digests import packed
from lbm_lora.naming import ModuleName
from lbm_lora.plain_text import parse_json

FORMAT = "1"

_WIDEST = 2**24  # channels of a layer

_FORMAT_KEY = STATISTICS_KEY
_FACTS_KEY = "lbm_lora_statistics_facts"


def save_statistics(statistics: Statistics, path: Path) -> None:
    """Write statistics atomically. Each moment is computed twice, so that only one is in memory at a time.

    Raises:
        OutputError: the path cannot be written.
        InputError: a moment is not finite.
    """
    specs = {key: TensorSpec.of(tensor) for key, tensor in _tensors(statistics)}
    with SafetensorsWriter(path, specs, metadata=_metadata(statistics)) as writer:
        for key, tensor in _tensors(statistics):
            writer.write(key, tensor)


def load_statistics(path: Path | str) -> Statistics:
    """Open a file of statistics; each moment is read on access.

    Raises:
        CheckpointError: the file cannot be read, or does not hold statistics of this format.
    """
    file = open_checkpoint(path)
    found = file.metadata.get(_FORMAT_KEY)
    if found != FORMAT:
        kind = kind_of(file.specs, file.metadata)
        what = f"holds statistics of format {found}" if found else "holds no calibration statistics"
        if kind is not None and not found:
            what = f"is {kind.name}, not a file of calibration statistics"
        raise CheckpointError(f"{path} {what}. `lbm-lora calibrate` makes one.")
    try:
        facts = cast(dict[str, Any], parse_json(file.metadata[_FACTS_KEY]))
        rows = cast(dict[str, tuple[list[int], str, float]], facts["layers"])
        layers = {ModuleName(n): CalledLayer(shape=tuple(s), inputs=ModuleName(i)) for n, (s, i, _) in rows.items()}
        _check_numbers(facts, layers)
        schedule = tuple((timestep, probability) for timestep, probability in facts["origin"].pop("schedule"))
        return Statistics(
            layers=layers,
            inputs=_StoredMoments(
                file, "inputs", {name: layer.shape[1] for name, layer in layers.items() if layer.inputs == name}
            ),
            outputs=_StoredMoments(file, "outputs", {name: layer.shape[0] for name, layer in layers.items()}),
            gradients={ModuleName(name): gradient for name, (_, _, gradient) in rows.items()},
            output_values=facts["output_values"],
            output_energy=facts["output_energy"],
            origin=Origin(schedule=schedule, **facts["origin"]),
            check_points=tuple(
                Point(timestep=timestep, probability=probability, state=_finite(file, f"checks.{index}"))
                for index, (timestep, probability) in enumerate(facts["checks"])
            ),
            image_digests=tuple(facts.get("images", "").split()),
        )
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: its statistics are malformed: {error!r}. Create the file again.") from None


def _check_numbers(facts: Mapping[str, Any], layers: Mapping[ModuleName, CalledLayer]) -> None:
    """Check the numbers that everything else is computed from.

    Raises:
        ValueError: a number is negative or not finite, a shape is not one, or a layer's inputs were not measured.
    """
    numbers = [facts["output_values"], facts["output_energy"], *(row[2] for row in facts["layers"].values())]
    numbers += [number for pair in (*facts["origin"]["schedule"], *facts["checks"]) for number in pair]
    if not all(type(number) in (int, float) and 0 <= number < math.inf for number in numbers):
        raise ValueError("a number is negative or not finite")
    origin = facts["origin"]
    texts, counts = [origin[key] for key in ("tuned", "images", "dtype")], [origin[key] for key in ("count", "probes")]
    if not all(type(text) is str for text in texts) or not all(type(count) is int for count in counts):
        raise ValueError("its origin is malformed")
    for layer in layers.values():
        sizes: list[object] = list(layer.shape)
        if len(sizes) not in (2, 4) or not all(type(size) is int and 0 < size < _WIDEST for size in sizes):
            raise ValueError(f"a layer has the shape {str(layer.shape)[:60]}")
        if layers[layer.inputs].inputs != layer.inputs:
            raise ValueError(f"the inputs of {layer.inputs} were not measured")


def _finite(file: Checkpoint, key: str) -> Tensor:
    """Read a tensor.

    Raises:
        CheckpointError: a value is not finite, or not a number in fp32.
    """
    tensor = file.read(key)
    if tensor.dtype != torch.float32 or not is_finite(tensor):
        raise CheckpointError(
            f"{file.path}: {key} holds NaN, infinite values or another dtype than fp32. The file is damaged: create it "
            "again."
        )
    return tensor


class _StoredMoments(Mapping[ModuleName, Moment]):
    """Moments of one side in a file.

    Args:
        widths: width of the moment of each layer.
    """

    def __init__(self, file: Checkpoint, side: str, widths: Mapping[ModuleName, int]) -> None:
        self._file, self._side, self._names = file, side, widths

    def __getitem__(self, name: ModuleName) -> Moment:
        prefix, width = f"{self._side}.{name}", self._names[name]
        if f"{prefix}.triangle" in self._file.specs:
            return Moment(dense=_square(self._read(f"{prefix}.triangle", (width * (width + 1) // 2,))))
        diagonal = self._read(f"{prefix}.diagonal", (width,))
        has_factor = f"{prefix}.factor" in self._file.specs
        return Moment(diagonal=diagonal, factor=self._read(f"{prefix}.factor", (width, -1)) if has_factor else None)

    def _read(self, key: str, shape: tuple[int, ...]) -> Tensor:
        tensor = _finite(self._file, key)
        if tensor.dim() != len(shape) or any(
            size not in (-1, found) for size, found in zip(shape, tensor.shape, strict=True)
        ):
            raise CheckpointError(
                f"{self._file.path}: {key} has the shape {tuple(tensor.shape)}, which is not that of its layer. "
                "Create the file again."
            )
        return tensor

    def __iter__(self) -> Iterator[ModuleName]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _tensors(statistics: Statistics) -> Iterator[tuple[str, Tensor]]:
    for side, moments in (("inputs", statistics.inputs), ("outputs", statistics.outputs)):
        for name, moment in moments.items():
            if moment.dense is not None:
                yield f"{side}.{name}.triangle", _triangle(moment.dense)
            if moment.diagonal is not None:
                yield f"{side}.{name}.diagonal", moment.diagonal
            if moment.factor is not None:
                yield f"{side}.{name}.factor", moment.factor
    for index, point in enumerate(statistics.check_points):
        yield f"checks.{index}", point.state


def _metadata(statistics: Statistics) -> dict[str, str]:
    facts = {
        "origin": asdict(statistics.origin),
        "images": packed(statistics.image_digests),
        "output_values": statistics.output_values,
        "output_energy": statistics.output_energy,
        "checks": [(point.timestep, point.probability) for point in statistics.check_points],
        "layers": {n: (layer.shape, layer.inputs, statistics.gradients[n]) for n, layer in statistics.layers.items()},
    }
    return {_FORMAT_KEY: FORMAT, _FACTS_KEY: json.dumps(facts, separators=(",", ":"))}


def _triangle(dense: Float[Tensor, "n n"]) -> Float[Tensor, " values"]:
    """Return the n (n + 1) / 2 values on and above the diagonal, row by row."""
    return dense[_above(len(dense), dense.device)]


def _square(triangle: Float[Tensor, " values"]) -> Float[Tensor, "n n"]:
    """Invert `_triangle` for a symmetric matrix."""
    size = (math.isqrt(8 * len(triangle) + 1) - 1) // 2
    dense = torch.zeros(size, size, dtype=triangle.dtype)
    dense[_above(size, dense.device)] = triangle
    return dense + dense.triu(1).mT


def _above(size: int, device: torch.device) -> Bool[Tensor, "n n"]:
    return torch.ones(size, size, dtype=torch.bool, device=device).triu()
