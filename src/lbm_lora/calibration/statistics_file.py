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
        raise CheckpointError(f"{path} {what}. `lbm-lora calibrate` writes format {FORMAT}.")
    try:
        facts = cast(dict[str, Any], parse_json(file.metadata[_FACTS_KEY]))
        rows = cast(dict[str, tuple[list[int], str, float]], facts["layers"])
        layers = {ModuleName(n): CalledLayer(shape=tuple(s), inputs=ModuleName(i)) for n, (s, i, _) in rows.items()}
        schedule = tuple((timestep, probability) for timestep, probability in facts["origin"].pop("schedule"))
        return Statistics(
            layers=layers,
            inputs=_StoredMoments(file, "inputs", [name for name, layer in layers.items() if layer.inputs == name]),
            outputs=_StoredMoments(file, "outputs", list(layers)),
            gradients={ModuleName(name): gradient for name, (_, _, gradient) in rows.items()},
            output_values=facts["output_values"],
            output_energy=facts["output_energy"],
            origin=Origin(schedule=schedule, **facts["origin"]),
            check_points=tuple(
                Point(timestep=timestep, probability=probability, state=file.read(f"checks.{index}"))
                for index, (timestep, probability) in enumerate(facts["checks"])
            ),
            image_digests=tuple(facts.get("images", "").split()),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its statistics are malformed: {error!r}. Create the file again.") from None


class _StoredMoments(Mapping[ModuleName, Moment]):
    """Moments of one side in a file."""

    def __init__(self, file: Checkpoint, side: str, names: list[ModuleName]) -> None:
        self._file, self._side, self._names = file, side, names

    def __getitem__(self, name: ModuleName) -> Moment:
        prefix = f"{self._side}.{name}"
        if f"{prefix}.triangle" in self._file.specs:
            return Moment(dense=_square(self._file.read(f"{prefix}.triangle")))
        has_factor = f"{prefix}.factor" in self._file.specs
        factor = self._file.read(f"{prefix}.factor") if has_factor else None
        return Moment(diagonal=self._file.read(f"{prefix}.diagonal"), factor=factor)

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
