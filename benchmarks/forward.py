"""Forward passes: the whole way with a fused or live LoRA beside the raw call of the network."""

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from lbm_lora.adapter import Adapter, LoraModule, load_adapter
from lbm_lora.apply import ScaledAdapter, fuse_module, inject
from lbm_lora.checkpoint import dtype_of
from lbm_lora.factorize import down_shape, has_matrix_view, rank_bound, up_shape
from lbm_lora.infer.pipeline import follow_bridge
from lbm_lora.model.build import LBMModel, load_model
from lbm_lora.naming import ModuleName, ParamName, leaf_of, module_of

Work = Callable[[], dict[str, Any]]


def infer(*, base: str, adapter: str, size: int, dtype: str, device: str, vae: bool) -> Work:
    """One denoiser call of each kind at `size` x `size` pixels: raw, fused, raw again, live.

    The raw call is the network alone on the same latents; the others are the whole way of one step, from the source's
    latents to the target's, as `lbm-lora infer` goes it. Encoding and decoding are measured beside them.
    """

    def work() -> dict[str, Any]:
        start = time.perf_counter()
        model = load_model(base, dtype=dtype_of(dtype), device=device)
        loading = time.perf_counter() - start
        loaded = load_adapter(adapter)
        latents = _latents(model, size)
        _raw(model, latents)  # the libraries set themselves up for these sizes on the first call
        found: dict[str, Any] = {"load_s": loading}
        found["raw_s"] = [_seconds(model, lambda: _raw(model, latents))]
        fused, fusing = _timed(lambda: fuse_module(model.denoiser, [ScaledAdapter(loaded)]))
        found |= {"fuse_s": fusing, "fused_s": _seconds(model, lambda: _whole(model, latents))}
        found["raw_s"].append(_seconds(model, lambda: _raw(model, latents)))
        fused.unfuse()
        del fused
        injected, injecting = _timed(lambda: inject(model.denoiser, [ScaledAdapter(loaded)]))
        found |= {"inject_s": injecting, "live_s": _seconds(model, lambda: _whole(model, latents))}
        injected.eject()
        if vae:
            image = torch.zeros(1, 3, size, size)
            found["encode_s"] = _seconds(model, lambda: model.encode(image))
            found["decode_s"] = _seconds(model, lambda: model.decode(latents))
        if model.device.type == "cuda":
            found["cuda_bytes"] = torch.cuda.max_memory_allocated(model.device)
        return found

    return work


def live(*, base: str, ranks: list[int], size: int, dtype: str, device: str, repeats: int) -> Work:
    """The whole way of one step with a live LoRA of each rank on every matrix, beside the raw call: medians."""

    def work() -> dict[str, Any]:
        model = load_model(base, dtype=dtype_of(dtype), device=device)
        latents = _latents(model, size)
        _raw(model, latents)
        rows: dict[str, float] = {}
        raw: list[float] = []
        for rank in ranks:
            injected = inject(model.denoiser, [ScaledAdapter(_random_adapter(model, rank))])
            _whole(model, latents)
            rows[str(rank)] = _median(_seconds(model, lambda: _whole(model, latents)) for _ in range(repeats))
            injected.eject()
            raw += [_seconds(model, lambda: _raw(model, latents)) for _ in range(repeats)]
        return {"raw_s": _median(raw), "live_s": rows}

    return work


def _latents(model: LBMModel, size: int) -> torch.Tensor:
    side = size // model.pixels_per_latent
    generator = torch.Generator().manual_seed(0)
    shape = (1, model.config.vae_num_channels, side, side)
    return torch.randn(shape, generator=generator).to(model.device, model.dtype)


@torch.no_grad()
def _raw(model: LBMModel, latents: torch.Tensor) -> torch.Tensor:
    timestep = torch.tensor([1000.0], device=model.device)
    return model.denoiser(latents, timestep, encoder_hidden_states=None).sample


def _whole(model: LBMModel, latents: torch.Tensor) -> torch.Tensor:
    return follow_bridge(model, latents, steps=1, seed=0)


def _seconds(model: LBMModel, call: Callable[[], torch.Tensor]) -> float:
    start = time.perf_counter()
    result = call()
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    seconds = time.perf_counter() - start
    if not torch.isfinite(result).all():
        raise AssertionError("the forward pass gave values that are not finite")
    return seconds


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


def _random_adapter(model: LBMModel, rank: int) -> Adapter:
    """A small random lora module of a rank on every matrix, capped by the matrix."""
    generator = torch.Generator().manual_seed(rank)
    modules: dict[ModuleName, LoraModule] = {}
    for name, tensor in model.denoiser.named_parameters():
        shape = tuple(tensor.shape)
        if leaf_of(ParamName(name)) != "weight" or not has_matrix_view(shape):
            continue
        count = min(rank, rank_bound(shape))
        down = 0.01 * torch.randn(down_shape(shape, count), generator=generator)
        up = 0.01 * torch.randn(up_shape(shape, count), generator=generator)
        module = module_of(ParamName(name))
        modules[module] = LoraModule(module, down.to(model.dtype), up.to(model.dtype), alpha=float(count))
    return Adapter(modules, {})
