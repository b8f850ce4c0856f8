"""Our side: whole commands, loading, and the error of factors against the exact optimum."""

import contextlib
import importlib
import io
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lbm_lora.adapter import LoraModule, load_adapter
from lbm_lora.checkpoint import Checkpoint, dtype_of, open_checkpoint
from lbm_lora.factorize import to_matrix
from lbm_lora.naming import ModuleName, weight_of

Work = Callable[[], dict[str, Any]]

_KEPT = ("nbytes", "changed", "tensors", "step", "seconds", "learning", "before", "after")  # of a command's result


def command(*, arguments: list[str]) -> Work:
    """One `lbm-lora` command; its JSON result is not kept but for what a report needs."""
    for module in ("cli.main", "cli.console", "cli.present", f"workflows.{arguments[0]}"):
        importlib.import_module(f"lbm_lora.{module}")
    from lbm_lora.cli.main import main

    def work() -> dict[str, Any]:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            code = main([*arguments, "--json"])
        if code:
            raise SystemExit(code)
        found = json.loads(output.getvalue())
        kept = {key: found[key] for key in _KEPT if key in found}
        if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
            kept["cuda_bytes"] = torch.cuda.max_memory_allocated()
        return kept

    return work


def load(*, path: str, dtype: str) -> Work:
    """File to ready model; then, beside the time, every page of it read once."""
    from lbm_lora.model.build import load_model

    def work() -> dict[str, Any]:
        before = sum(resident().values())
        start = time.perf_counter()
        model = load_model(path, dtype=dtype_of(dtype))
        loaded = time.perf_counter() - start
        anonymous = resident()["RssAnon"]
        start = time.perf_counter()
        total = sum(float(tensor.sum(dtype=torch.float32)) for tensor in model.denoiser.parameters())
        total += sum(float(tensor.sum(dtype=torch.float32)) for tensor in model.vae.parameters())
        return {
            "load_s": loaded,
            "read_all_s": time.perf_counter() - start,
            "anon_after_load": anonymous,
            "resident_growth": sum(resident().values()) - before,
            "finite": math.isfinite(total),
        }

    return work


def resident() -> dict[str, int]:
    """RssAnon and RssFile of this process in bytes; zeros where the system does not say."""
    found = {"RssAnon": 0, "RssFile": 0}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in found:
                found[name] = int(rest.split()[0]) * 1024
    return found


def factors(*, base: str, tuned: str, adapter: str, per_shape: int) -> Work:
    """The error of lora modules against the exact truncated SVD, in fp64.

    Args:
        per_shape: modules of each shape of matrix, spread over the network; 0 is all of them.
    """
    found = load_adapter(adapter)

    def work() -> dict[str, Any]:
        with open_checkpoint(base) as first, open_checkpoint(tuned) as second:
            names = sample({name: module.shape for name, module in found.modules.items()}, per_shape)
            rows = {name: _errors(first, second, found.prefix, found.modules[name]) for name in names}
        return {"modules": rows, "of": len(found.modules), "facts": _error_facts(found.metadata.facts)}

    return work


def sample(shapes: dict[ModuleName, tuple[int, ...]], per_shape: int) -> list[ModuleName]:
    """Names of each shape, spread evenly over their order."""
    groups: dict[tuple[int, ...], list[ModuleName]] = {}
    for name, shape in shapes.items():
        groups.setdefault(shape, []).append(name)
    chosen: list[ModuleName] = []
    for names in groups.values():
        count = min(per_shape or len(names), len(names))
        chosen += [names[(2 * index + 1) * len(names) // (2 * count)] for index in range(count)]
    return chosen


def _errors(first: Checkpoint, second: Checkpoint, prefix: str, module: LoraModule) -> dict[str, Any]:
    key = prefix + weight_of(module.name)
    matrix = to_matrix(second.read(key).float() - first.read(key).float()).double()
    norm, best = optimum(matrix, module.rank)
    up, down = module.up.flatten(1).double(), module.down.flatten(1).double()
    error = float(torch.linalg.vector_norm(matrix - module.scaling * up @ down))
    return {
        "shape": list(matrix.shape),
        "rank": module.rank,
        "relative_error": error / norm,
        "relative_optimum": best / norm,
        "ratio": error / best if best > 1e-6 * norm else None,
        "norm": norm,
    }


def optimum(matrix: Tensor, rank: int) -> tuple[float, float]:
    """The norm of an fp64 matrix and the error of its exact truncated SVD, by the Gram matrix of the short side."""
    rows, columns = matrix.shape
    gram = matrix @ matrix.mT if rows <= columns else matrix.mT @ matrix
    squares = torch.linalg.eigvalsh(gram).clamp(min=0)
    rest = squares[: max(len(squares) - rank, 0)]
    return math.sqrt(float(squares.sum())), math.sqrt(float(rest.sum()))


def _error_facts(facts: Any) -> dict[str, str]:
    """What the file itself says of its errors."""
    return {key: str(value) for key, value in facts.items() if "error" in key or "noise_floor" in key}


def agreement(*, one: str, other: str) -> Work:
    """How far two adapters are from each other: relative, over the products of all lora modules."""
    first, second = load_adapter(one), load_adapter(other)

    def work() -> dict[str, Any]:
        rows: list[float] = []
        for name, module in first.modules.items():
            delta = module.delta()
            change = torch.linalg.vector_norm(delta - second.modules[name].delta())
            rows.append(float(change / torch.linalg.vector_norm(delta)))
        return {"largest": max(rows), "mean": sum(rows) / len(rows), "modules": len(rows)}

    return work
