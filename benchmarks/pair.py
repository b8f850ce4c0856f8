"""Make the base and tuned checkpoints that everything is measured on, and the backbone for `base`.

Both files are streamed by our own writer, in constant memory, two tensors at work at a time. A pair that is there
already is taken as it is; what was made is written beside it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks import values
from benchmarks.machine import require_space
from benchmarks.sizes import backbone_unet, lbm_config
from lbm_lora.atomic import write_text
from lbm_lora.checkpoint import SafetensorsWriter, TensorSpec
from lbm_lora.model.config import LBMConfig
from lbm_lora.model.names import Shapes, checkpoint_shapes, denoiser_shapes, empty_vae, shapes_of
from lbm_lora.model.resolve import config_to_metadata
from lbm_lora.naming import DENOISER_PREFIX

_WORKERS = 2
_AHEAD = 2 * _WORKERS  # tensors in memory at a time
_DTYPE = torch.bfloat16

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Attributes:
    base, tuned: `.safetensors` files.
    facts: what they are made of.
    """

    base: Path
    tuned: Path
    facts: dict[str, object]

    @property
    def nbytes(self) -> int:
        """Of one file."""
        return self.base.stat().st_size


def make_pair(folder: Path, *, scale: float = 1, depth: tuple[int, int, int] | None = None, seed: int = 0) -> Pair:
    """The pair of a scale in `folder`; made where it is not there.

    Raises:
        SystemExit: the disk is too small.
    """
    config = lbm_config(scale, depth)
    shapes = checkpoint_shapes(config)
    facts = _facts(config, shapes, scale, seed)
    pair = Pair(base=folder / "base.safetensors", tuned=folder / "tuned.safetensors", facts=facts)
    if _is_there(folder / "pair.json", facts, (pair.base, pair.tuned)):
        return pair
    specs = {name: TensorSpec(_DTYPE, shape) for name, shape in shapes.items()}
    require_space(folder, 2 * sum(spec.nbytes for spec in specs.values()), f"a pair of checkpoints of scale {scale:g}")
    print(f"making the pair: {json.dumps(facts)}", flush=True)
    metadata = {"format": "pt", **config_to_metadata(config)}
    torch.set_num_threads(1)
    with (
        SafetensorsWriter(pair.base, specs, metadata=metadata) as base,
        SafetensorsWriter(pair.tuned, specs, metadata=metadata) as tuned,
        ThreadPoolExecutor(_WORKERS) as pool,
    ):
        jobs = (pool.submit(_both, name, shape, seed) for name, shape in shapes.items())
        for name, (before, after) in zip(shapes, _in_order(jobs), strict=True):
            base.write(name, before)
            tuned.write(name, after)
    write_text(folder / "pair.json", json.dumps(facts, indent=2) + "\n")
    return pair


def make_backbone(folder: Path, *, scale: float = 1, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """A folder in SDXL's diffusers layout, random values, by default in fp32 as an exact base needs it."""
    config = lbm_config(scale)
    unet = backbone_unet(config.unet_config)
    parts: dict[str, tuple[dict[str, object], Shapes]] = {
        "unet": (unet, denoiser_shapes(unet)),
        "vae": ({"_class_name": "AutoencoderKL", **config.vae_config}, shapes_of(empty_vae(config.vae_config))),
    }
    facts: dict[str, object] = {"scale": scale, "seed": seed, "dtype": str(dtype).removeprefix("torch.")}
    files = [folder / part / "diffusion_pytorch_model.safetensors" for part in parts]
    if _is_there(folder / "backbone.json", facts, files):
        return folder
    require_space(folder, sum(_nbytes(shapes, dtype) for _, shapes in parts.values()), "a backbone")
    print(f"making the backbone: {json.dumps(facts)}", flush=True)
    torch.set_num_threads(1)
    for file, (network, shapes) in zip(files, parts.values(), strict=True):
        write_text(file.parent / "config.json", json.dumps(network, indent=2))
        specs = {name: TensorSpec(dtype, shape) for name, shape in shapes.items()}
        with SafetensorsWriter(file, specs, metadata={"format": "pt"}) as writer, ThreadPoolExecutor(_WORKERS) as pool:
            jobs = (pool.submit(values.weight, name, shape, seed) for name, shape in shapes.items())
            for name, tensor in zip(shapes, _in_order(jobs), strict=True):
                writer.write(name, tensor.to(dtype))
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
    write_text(folder / "scheduler" / "scheduler_config.json", json.dumps(scheduler, indent=2))
    write_text(folder / "backbone.json", json.dumps(facts, indent=2) + "\n")
    return folder


def _both(name: str, shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """One tensor of base and tuned; the VAE and the counter are the same in both."""
    before = values.weight(name, shape, seed).to(_DTYPE)
    if not name.startswith(DENOISER_PREFIX):
        return before, before
    return before, values.delta(name, shape, seed).add_(before).to(_DTYPE)


def _in_order(jobs: Iterable[Future[Result]]) -> Iterator[Result]:
    """The results of lazily submitted jobs in their order, a few ahead."""
    source = iter(jobs)
    waiting = list(islice(source, _AHEAD))
    while waiting:
        result = waiting.pop(0).result()
        waiting.extend(islice(source, 1))
        yield result


def _facts(config: LBMConfig, shapes: Shapes, scale: float, seed: int) -> dict[str, object]:
    unet = config.unet_config
    denoiser = [shape for name, shape in shapes.items() if name.startswith(DENOISER_PREFIX)]
    return {
        "scale": scale,
        "seed": seed,
        "widths": list(unet["block_out_channels"]),
        "depth": list(unet["transformer_layers_per_block"]),
        "tensors of the denoiser": len(denoiser),
        "parameters of the denoiser": sum(TensorSpec(_DTYPE, shape).numel for shape in denoiser),
        "dtype": "bf16",
        **values.FACTS,
    }


def _is_there(note: Path, facts: Mapping[str, object], files: Iterable[Path]) -> bool:
    return note.exists() and json.loads(note.read_text()) == facts and all(file.exists() for file in files)


def _nbytes(shapes: Shapes, dtype: torch.dtype) -> int:
    return sum(TensorSpec(dtype, shape).nbytes for shape in shapes.values())
