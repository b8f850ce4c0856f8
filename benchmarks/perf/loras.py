"""Make LoRAs of LBM's shapes with random factors, for what works on LoRAs alone."""

from pathlib import Path

import torch
import xxhash

from benchmarks.perf.pair import lbm_config
from lbm_lora.adapter import FORMAT, AdapterMetadata, AdapterWriter, LoraModule
from lbm_lora.factorize import FixedRank, down_shape, has_matrix_view, up_shape
from lbm_lora.model.names import checkpoint_shapes
from lbm_lora.naming import DENOISER_PREFIX, ParamName, leaf_of, module_of


def make_lora(path: Path, *, scale: float = 1, seed: int = 0, ranks: FixedRank) -> Path:
    """Write a bf16 LoRA of every matrix of the denoiser, with dense deltas of everything else; each is made on the fly.

    Args:
        scale: of the networks' widths and depth; 1 is the real LBM.
        seed: seed of the values, with the names.
    """
    found = [one for one in checkpoint_shapes(lbm_config(scale)).items() if one[0].startswith(DENOISER_PREFIX)]
    shapes = {
        ParamName(key.removeprefix(DENOISER_PREFIX)): shape for key, shape in found if key.startswith(DENOISER_PREFIX)
    }
    matrices = {name: shape for name, shape in shapes.items() if leaf_of(name) == "weight" and has_matrix_view(shape)}
    dense = {name: shape for name, shape in shapes.items() if name not in matrices}
    with AdapterWriter(
        path,
        DENOISER_PREFIX,
        torch.bfloat16,
        {module_of(name): shape for name, shape in matrices.items()},
        {module_of(name): ranks.rank_of(shape) for name, shape in matrices.items()},
        dense,
        AdapterMetadata(FORMAT, base_fingerprint="synthetic"),
    ) as writer:
        for name, shape in matrices.items():
            rank = ranks.rank_of(shape)
            down, up = (_values(name, one, seed) for one in (down_shape(shape, rank), up_shape(shape, rank)))
            writer.add_module(LoraModule(module_of(name), down, up, float(rank)))
        for name, shape in dense.items():
            writer.add_dense(name, _values(name, shape, seed))
    return path


def _values(name: ParamName, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(f"{seed} {shape} {name}".encode()) >> 1)
    return torch.randn(shape, generator=draw).mul_(0.02).bfloat16()
