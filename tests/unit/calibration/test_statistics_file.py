"""Statistics in a file."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lbm_lora.calibration import Statistics, load_statistics, save_statistics
from lbm_lora.errors import CheckpointError
from lbm_lora.naming import ModuleName


@pytest.fixture
def path(statistics: Statistics, tmp_path: Path) -> Path:
    save_statistics(statistics, tmp_path / "s.safetensors")
    return tmp_path / "s.safetensors"


def test_a_file_gives_everything_back_but_for_rounding(statistics: Statistics, path: Path) -> None:
    loaded = load_statistics(path)
    assert list(loaded) == list(statistics)
    assert dict(loaded.layers) == dict(statistics.layers)
    assert loaded.origin == statistics.origin
    assert (loaded.output_values, loaded.output_energy) == (statistics.output_values, statistics.output_energy)
    pairs = [(loaded.vectors[name], moment) for name, moment in statistics.vectors.items()]
    assert len(loaded.vectors) == len(pairs) > 50
    for name, weights in statistics.items():
        again = loaded[name]
        assert again.scale == pytest.approx(weights.scale, rel=1e-5)
        assert again.ridge == weights.ridge
        for one, other in ((again.inputs, weights.inputs), (again.outputs, weights.outputs)):
            assert one is not None
            assert other is not None
            assert one.repeat == other.repeat
            pairs.append((one, other))
    for found, wanted in pairs:
        assert (found.dense is None, found.factor is None) == (wanted.dense is None, wanted.factor is None)
        mean = float(wanted.variances().mean())
        torch.testing.assert_close(found.variances(), wanted.variances(), rtol=1e-5, atol=1e-4 * mean)


def test_a_shared_input_and_half_of_a_symmetric_moment_are_stored(path: Path) -> None:
    tensors = load_file(path)
    block = "mid_block.attentions.0.transformer_blocks.0.attn1"
    assert f"inputs.{block}.to_q.factor" in tensors
    assert not any(key.startswith(f"inputs.{block}.to_k") for key in tensors)
    lower = tensors["inputs.conv_in.lower"]
    assert (lower.shape, lower.dtype) == ((36 * 37 // 2,), torch.float16)  # 4 channels, 9 positions


def test_files_of_format_1_are_read(statistics: Statistics, path: Path, tmp_path: Path) -> None:
    """They held no vectors, and fp32 moments: triangles, or diagonals and factors."""
    name, tensors = ModuleName("conv_in"), dict[str, torch.Tensor]()
    for side, size in (("inputs", 4), ("outputs", 16)):
        tensors[f"{side}.{name}.triangle"] = torch.eye(size)[*torch.triu_indices(size, size)]
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["lbm_lora_statistics_facts"])
    facts |= {"layers": {name: facts["layers"][name]}, "checks": []}
    del facts["vectors"], facts["origin"]["conv_dense_up_to"]
    metadata = {"lbm_lora_statistics": "1", "lbm_lora_statistics_facts": json.dumps(facts)}
    save_file(tensors, tmp_path / "old.safetensors", metadata=metadata)
    found = load_statistics(tmp_path / "old.safetensors")
    assert (dict(found.vectors), list(found)) == ({}, [name])
    inputs, outputs = found[name].inputs, found[name].outputs
    assert inputs is not None
    assert outputs is not None
    assert (inputs.size, inputs.repeat, outputs.size, outputs.repeat) == (4, 9, 16, 1)
    assert inputs.quadratic(torch.ones(1, 36)) == outputs.quadratic(torch.ones(1, 16)) * 36 / 16 == 36


def test_other_files_are_refused(path: Path, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=r"lora\.safetensors holds no calibration statistics\. `lbm-lora calibr"):
        load_statistics(tmp_path / "lora.safetensors")
    save_file({"denoiser.a.lora_up.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=r"lora\.safetensors is a LoRA, not a file of calibration statistics\. "):
        load_statistics(tmp_path / "lora.safetensors")
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    newer = metadata | {"lbm_lora_statistics": "3"}
    save_file({"a": torch.zeros(1)}, tmp_path / "newer.safetensors", metadata=newer)
    with pytest.raises(CheckpointError, match="holds statistics of format 3"):
        load_statistics(tmp_path / "newer.safetensors")
    facts = json.loads(metadata["lbm_lora_statistics_facts"])
    del facts["layers"]
    damaged = metadata | {"lbm_lora_statistics_facts": json.dumps(facts)}
    save_file({"a": torch.zeros(1)}, tmp_path / "damaged.safetensors", metadata=damaged)
    with pytest.raises(CheckpointError, match=r"its statistics are malformed: KeyError\('layers'\)"):
        load_statistics(tmp_path / "damaged.safetensors")
