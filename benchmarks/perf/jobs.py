"""Jobs measured in separate processes: our commands, and their references.

Imports in this module count for every command, so the networks are imported only where needed.
"""

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from benchmarks.command import lbm_lora
from benchmarks.measure import proc_numbers
from lbm_lora import load_adapter, open_checkpoint
from lbm_lora.checkpoint import Checkpoint, dtype_of
from lbm_lora.factorize import to_matrix
from lbm_lora.naming import ModuleName, weight_of

_BLOCK = 1 << 18  # values: two fp32 blocks fit a core's L2 cache


def command(*, line: list[str]) -> dict[str, Any]:
    """Run one `lbm-lora` command, and keep the numbers of its JSON result."""
    return {key: value for key, value in lbm_lora(line).items() if isinstance(value, int | float)}


def bare_pass(*, base: str, tuned: str, threads: int, blocked: bool) -> dict[str, Any]:
    """Read both files through memory maps, subtract in fp32, add up the squares.

    Each thread works on its own tensors, or on blocks that fit the cache, in reused buffers.
    """
    torch.set_num_threads(1)
    with open_checkpoint(base) as first, open_checkpoint(tuned) as second, ThreadPoolExecutor(threads) as pool:
        if blocked:
            blocks = list(_blocks(first, second))
            parts = pool.map(_squares_of_blocks, [blocks[start::threads] for start in range(threads)])
        else:
            parts = pool.map(lambda name: _squares(first.read(name), second.read(name)), list(first.specs))
        return {"sum_of_squares": sum(parts)}


def copy(*, source: str, targets: list[str]) -> dict[str, Any]:
    """Copy a file with the system's own means, once per target, each synced to disk like our outputs."""
    for target in targets:
        shutil.copyfile(source, target)
        descriptor = os.open(target, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return {}


def svd(*, base: str, tuned: str, name: str) -> dict[str, Any]:
    """Return the seconds of one layer's SVD: with full matrices, as in the earlier implementation, and thin."""
    with open_checkpoint(base) as first, open_checkpoint(tuned) as second:
        matrix = to_matrix(second.read(name).float() - first.read(name).float())
    torch.linalg.svd(torch.eye(64) + 0.1)  # LAPACK is loaded on its first call
    kinds = {"full_s": True, "thin_s": False}
    return {key: _timed(partial(torch.linalg.svd, matrix, full))[1] for key, full in kinds.items()}


def product_rates(*, columns: int) -> dict[str, Any]:
    """Return GFLOP/s of products with a few columns, as in a Krylov round, in fp32 and bf16: the best of six."""
    rates: dict[str, Any] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        tall, thin = torch.randn(10240, 1280).to(dtype), torch.randn(1280, columns).to(dtype)
        best = min(_timed(lambda a=tall, b=thin: a @ b)[1] for _ in range(6))
        rates[name] = 2 * tall.numel() * columns / best / 1e9
    return rates


def load(*, path: str, dtype: str) -> dict[str, Any]:
    """Load a file to a ready model; then, outside the measured time, read every page of it once."""
    from lbm_lora import load_model

    before = _resident()
    model, loading = _timed(lambda: load_model(path, dtype=dtype_of(dtype)))
    total = sum(
        float(tensor.sum(dtype=torch.float32)) for tensor in (*model.denoiser.parameters(), *model.vae.parameters())
    )
    return {"load_s": loading, "resident_growth": _resident() - before, "finite": math.isfinite(total)}


@torch.no_grad()
def infer(*, base: str, lora: str, size: int, dtype: str, device: str) -> dict[str, Any]:
    """Time one denoiser call of each kind at `size` x `size` pixels: raw, fused, raw again, live.

    The raw call is only the network on the same latents; the others are one complete step from the source's latents to
    the target's, as in `lbm-lora infer`.
    """
    from lbm_lora import ScaledAdapter, fuse_module, inject, load_model
    from lbm_lora.model.bridge_pipeline import follow_bridge

    model, adapters = load_model(base, dtype=dtype_of(dtype), device=device), [ScaledAdapter(load_adapter(lora))]
    side = size // model.pixels_per_latent
    shape = (1, model.config.vae_num_channels, side, side)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.device, model.dtype)
    timestep = torch.tensor([1000.0], device=model.device)

    def seconds(call: Callable[[], Tensor]) -> float:
        start = time.perf_counter()
        result = call()
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        taken = time.perf_counter() - start
        if not torch.isfinite(result).all():
            raise AssertionError("the forward pass returned values that are not finite")
        return taken

    def raw() -> Tensor:
        return model.denoiser(latents, timestep, encoder_hidden_states=None).sample

    def step() -> Tensor:
        noise, draw = model.config.bridge_noise_sigma, torch.Generator().manual_seed(0)
        return follow_bridge(model.denoise, latents, 1, noise, [draw])

    raw()  # the first call sets up the libraries for these sizes
    found: dict[str, Any] = {"raw_s": [seconds(raw)]}
    fused, found["fuse_s"] = _timed(lambda: fuse_module(model.denoiser, adapters))
    found["fused_s"] = seconds(step)
    found["raw_s"].append(seconds(raw))
    fused.unfuse()
    del fused
    injected, found["inject_s"] = _timed(lambda: inject(model.denoiser, adapters))
    found["live_s"] = seconds(step)
    injected.eject()
    return found


def factors(*, base: str, tuned: str, lora: str, per_shape: int) -> dict[str, Any]:
    """Return errors of a `sample` of lora modules in fp64: over the exact truncated SVD's, and of all together."""
    adapter = load_adapter(lora)
    errors: list[float] = []
    norms: list[float] = []
    ratios: list[float] = []
    with open_checkpoint(base) as first, open_checkpoint(tuned) as second:
        for name in sample({name: module.shape for name, module in adapter.modules.items()}, per_shape):
            module, key = adapter.modules[name], adapter.prefix + weight_of(name)
            matrix = to_matrix(second.read(key).float() - first.read(key).float()).double()
            norm, best = optimum(matrix, module.rank)
            up, down = module.up.flatten(1).double(), module.down.flatten(1).double()
            errors.append(float(torch.linalg.vector_norm(matrix - module.scaling * up @ down)))
            norms.append(norm)
            ratios += [errors[-1] / best] if best > 1e-6 * norm else []
    return {
        "measured": len(norms),
        "of": len(adapter.modules),
        "largest_ratio": max(ratios, default=None),
        "mean_ratio": fmean(ratios) if ratios else None,
        "relative_error": math.hypot(*errors) / math.hypot(*norms),
    }


def sample(shapes: Mapping[ModuleName, tuple[int, ...]], per_shape: int) -> list[ModuleName]:
    """Return names of each shape, evenly spread over their order; all of them for 0."""
    groups: dict[tuple[int, ...], list[ModuleName]] = {}
    for name, shape in shapes.items():
        groups.setdefault(shape, []).append(name)
    chosen: list[ModuleName] = []
    for names in groups.values():
        count = min(per_shape or len(names), len(names))
        chosen += [names[(2 * index + 1) * len(names) // (2 * count)] for index in range(count)]
    return chosen


def optimum(matrix: Tensor, rank: int) -> tuple[float, float]:
    """Return the norm of an fp64 matrix and the error of its exact truncated SVD, from the short side's Gram matrix."""
    gram = matrix @ matrix.mT if matrix.shape[0] <= matrix.shape[1] else matrix.mT @ matrix
    squares = torch.linalg.eigvalsh(gram).clamp(min=0)
    rest = squares[: max(len(squares) - rank, 0)]
    return math.sqrt(float(squares.sum())), math.sqrt(float(rest.sum()))


def _squares(before: Tensor, after: Tensor) -> float:
    change = after.float() - before.float()
    return float(torch.linalg.vector_norm(change)) ** 2


def _blocks(first: Checkpoint, second: Checkpoint) -> Iterator[tuple[Tensor, Tensor]]:
    for name in first.specs:
        before, after = first.read(name).reshape(-1), second.read(name).reshape(-1)
        yield from zip(before.split(_BLOCK), after.split(_BLOCK), strict=True)


def _squares_of_blocks(blocks: list[tuple[Tensor, Tensor]]) -> float:
    one, other = torch.empty(_BLOCK), torch.empty(_BLOCK)
    total = 0.0
    for before, after in blocks:
        low, high = one[: len(before)].copy_(before), other[: len(after)].copy_(after)
        high.sub_(low)
        total += float(torch.dot(high, high))
    return total


def _resident() -> int:
    """Return the resident bytes of this process, including file pages; 0 if the system does not report them."""
    found = proc_numbers(Path("/proc/self/status"))
    return 1024 * (found.get("RssAnon", 0) + found.get("RssFile", 0))


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start
