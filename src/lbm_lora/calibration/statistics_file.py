"""Write and read statistics as a `.safetensors` file, moment by moment.

Keys are `inputs.MODULE.PART`, `outputs.MODULE.PART` and `vectors.PARAMETER.PART`, with the parts of `packing`, and
`checks.0`, `checks.0.wanted` and so on for the checks; everything else is JSON in the header. Format 1 had fp32
moments, stored by their upper triangle or by diagonal and factor, and no vectors.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from lbm_lora.blocks import is_finite
from lbm_lora.calibration.layers import CalledLayer
from lbm_lora.calibration.packing import DIAGONAL, NORMS, pack_moment, packed_specs, unpack_moment
from lbm_lora.calibration.statistics import LazyMoments, Name, Origin, Statistics
from lbm_lora.checkpoint import STATISTICS_KEY, Checkpoint, SafetensorsWriter, TensorSpec, kind_of, open_checkpoint
from lbm_lora.errors import CheckpointError
from lbm_lora.factorize import Moment
from lbm_lora.fidelity.checks import Check, CheckKind
from lbm_lora.fidelity.points import Point
from lbm_lora.imaging.digests import packed
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.ranks import SHIFTS
from lbm_lora.text import parse_json

FORMAT = "2"
_READ = ("1", FORMAT)

_WIDEST = 2**24  # channels of a layer
_ROW = 4  # values of a check; older files have two, and points that are in their moments

_FACTS_KEY = "lbm_lora_statistics_facts"


def save_statistics(statistics: Statistics, path: Path) -> None:
    """Write statistics atomically. Sums become moments twice, so that only one moment is in memory at a time."""
    checks: dict[str, Tensor] = {}
    for index, check in enumerate(statistics.checks):
        if check.point is not None:
            checks[f"checks.{index}"] = check.point.state
        checks[f"checks.{index}.wanted"] = check.wanted
    specs = {key: TensorSpec.of(tensor) for key, tensor in checks.items()}
    for prefix, moment in _moments(statistics):
        specs |= {f"{prefix}.{part}": spec for part, spec in packed_specs(moment).items()}
    with SafetensorsWriter(path, specs, metadata=_metadata(statistics)) as writer:
        for prefix, moment in _moments(statistics):
            for part, tensor in pack_moment(moment).items():
                writer.write(f"{prefix}.{part}", tensor)
        for key, tensor in checks.items():
            writer.write(key, tensor)


def load_statistics(path: Path | str) -> Statistics:
    """Open a file of statistics; each moment is read on access."""
    file = open_checkpoint(path)
    found = file.metadata.get(STATISTICS_KEY)
    if found not in _READ:
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
        vectors = {ParamName(name): size for name, size in facts.get("vectors", {}).items()}
        specs = _by_prefix(file)
        schedule = tuple((timestep, probability) for timestep, probability in facts["origin"].pop("schedule"))
        return Statistics(
            layers=layers,
            inputs=_moments_in(file, specs, "inputs", _input_widths(layers, specs)),
            outputs=_moments_in(file, specs, "outputs", {name: layer.shape[0] for name, layer in layers.items()}),
            vectors=_moments_in(file, specs, "vectors", vectors),
            gradients={ModuleName(name): gradient for name, (_, _, gradient) in rows.items()},
            output_values=facts["output_values"],
            output_energy=facts["output_energy"],
            origin=Origin(schedule=schedule, **facts["origin"]),
            checks=tuple(_check(file, index, *row) for index, row in enumerate(facts["checks"]) if len(row) == _ROW),
            image_digests=tuple(facts.get("images", "").split()),
            unmeasured={ModuleName(name): str(reason) for name, reason in facts.get("unmeasured", {}).items()},
            path=file.path,
        )
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: its statistics are malformed: {error!r}. Create the file again.") from None


def _check_numbers(facts: Mapping[str, Any], layers: Mapping[ModuleName, CalledLayer]) -> None:
    """Check the numbers that everything else is computed from; a ValueError says which is malformed."""
    numbers = [facts["output_values"], facts["output_energy"], *(row[2] for row in facts["layers"].values())]
    numbers += [number for pair in (*facts["origin"]["schedule"], *facts["checks"]) for number in pair[:2]]
    if not all(type(number) in (int, float) and 0 <= number < math.inf for number in numbers):
        raise ValueError("a number is negative or not finite")
    origin = facts["origin"]
    texts = [origin["tuned"], origin["images"], origin["dtype"], origin.get("around", "")]
    counts = [origin["count"], origin["probes"]]
    if not all(type(text) is str for text in texts) or not all(type(count) is int for count in counts):
        raise ValueError("its origin is malformed")
    if not all(type(size) is int and 0 < size < _WIDEST for size in facts.get("vectors", {}).values()):
        raise ValueError("the length of a vector is malformed")
    for layer in layers.values():
        sizes: list[object] = list(layer.shape)
        if len(sizes) not in (2, 4) or not all(type(size) is int and 0 < size < _WIDEST for size in sizes):
            raise ValueError(f"a layer has the shape {str(layer.shape)[:60]}")
        if layers[layer.inputs].inputs != layer.inputs:
            raise ValueError(f"the inputs of {layer.inputs} were not measured")


def _check(file: Checkpoint, index: int, timestep: float, probability: float, kind: str, sample: int) -> Check:
    """Read a check: timestep and probability are those of its point."""
    if kind == "shifted":  # in older files: noise, half the size and other timesteps together
        kind = "content"
    if kind not in ("held", *SHIFTS) or type(sample) is not int:
        raise ValueError(f"a check is of the kind {str(kind)[:20]}")
    state, point = f"checks.{index}", None
    if state in file.specs:
        point = Point(timestep=timestep, probability=probability, state=_finite(file, state))
    return Check(kind=cast(CheckKind, kind), wanted=_finite(file, f"{state}.wanted"), point=point, sample=sample)


def _finite(file: Checkpoint, key: str) -> Tensor:
    tensor = file.read(key)
    if tensor.dtype not in (torch.float32, torch.float16) or not is_finite(tensor):
        raise CheckpointError(
            f"{file.path}: {key} holds NaN, infinite values or another dtype than fp32 and fp16. The file is damaged: "
            "create it again."
        )
    return tensor


_Specs = dict[str, dict[str, TensorSpec]]


def _moments_in(file: Checkpoint, specs: _Specs, side: str, widths: Mapping[Name, int]) -> Mapping[Name, Moment]:
    def moment_of(name: Name) -> Moment:
        prefix = f"{side}.{name}"
        try:
            return unpack_moment(specs[prefix], lambda part: _finite(file, f"{prefix}.{part}"), widths[name])
        except (KeyError, ValueError) as error:
            raise CheckpointError(f"{file.path}: {prefix} is malformed: {error!r}. Create the file again.") from None

    return LazyMoments(widths, moment_of)


def _input_widths(layers: Mapping[ModuleName, CalledLayer], specs: _Specs) -> dict[ModuleName, int]:
    """Return the width of each input moment: the columns of the layer's matrix, or its channels only."""
    found: dict[ModuleName, int] = {}
    for name, layer in layers.items():
        if layer.inputs == name:
            rows = specs[f"inputs.{name}"].get(NORMS) or specs[f"inputs.{name}"].get(DIAGONAL)
            is_complete = rows is not None and rows.shape == (layer.columns,)
            found[name] = layer.columns if is_complete else layer.shape[1]
    return found


def _by_prefix(file: Checkpoint) -> _Specs:
    found: _Specs = {}
    for key, spec in file.specs.items():
        prefix, _, part = key.rpartition(".")
        found.setdefault(prefix, {})[part] = spec
    return found


def _moments(statistics: Statistics) -> Iterator[tuple[str, Moment]]:
    yield from ((f"inputs.{name}", moment) for name, moment in statistics.inputs.items())
    yield from ((f"outputs.{name}", moment) for name, moment in statistics.outputs.items())
    yield from ((f"vectors.{name}", moment) for name, moment in statistics.vectors.items())


def _metadata(statistics: Statistics) -> dict[str, str]:
    facts = {
        "origin": asdict(statistics.origin),
        "images": packed(statistics.image_digests),
        "output_values": statistics.output_values,
        "output_energy": statistics.output_energy,
        "checks": [_row(check) for check in statistics.checks],
        "unmeasured": statistics.unmeasured,
        "vectors": {name: moment.size for name, moment in statistics.vectors.items()},
        "layers": {n: (layer.shape, layer.inputs, statistics.gradients[n]) for n, layer in statistics.layers.items()},
    }
    return {STATISTICS_KEY: FORMAT, _FACTS_KEY: json.dumps(facts, separators=(",", ":"))}


def _row(check: Check) -> tuple[float, float, str, int]:
    timestep, probability = (check.point.timestep, check.point.probability) if check.point else (0.0, 1.0)
    return timestep, probability, check.kind, check.sample
