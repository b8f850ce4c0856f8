"""LoRAs of LBM's shapes for the benchmarks: complete, seeded, of the ranks asked for."""

from pathlib import Path

import torch

from benchmarks.perf.loras import make_lora
from lbm_lora.adapter import load_adapter
from lbm_lora.factorize import FixedRank
from lbm_lora.naming import ModuleName


def test_a_lora_of_every_tensor(tmp_path: Path) -> None:
    ranks = FixedRank(linear=3, conv=2)
    one, same, other = (
        load_adapter(make_lora(tmp_path / f"{number}.safetensors", scale=0.1, seed=seed, ranks=ranks))
        for number, seed in enumerate((1, 1, 2))
    )
    assert len(one) == 496
    assert {module.rank for module in one.modules.values()} == {2, 3}
    name = ModuleName("conv_in")
    assert torch.equal(one.modules[name].up, same.modules[name].up)
    assert not torch.equal(one.modules[name].up, other.modules[name].up)
