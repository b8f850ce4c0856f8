"""`merge` of values: paths and adapters, as the command's files."""

from pathlib import Path

import pytest
import torch

import lbm_lora
from lbm_lora import Adapter, ConfigError, MergeConfig
from lbm_lora.naming import ParamName
from smallnet import small_state

WEIGHT = ParamName("head.0.weight")


@pytest.fixture(scope="module")
def loras() -> list[Adapter]:
    return [lbm_lora.extract(small_state(1), small_state(seed), rank=3, save_precision="float") for seed in (2, 3)]


def test_paths_and_adapters_give_the_tensors_of_the_command(loras: list[Adapter], tmp_path: Path, empty: Path) -> None:
    paths = [lora.save(tmp_path / f"{number}.safetensors") for number, lora in enumerate(loras)]
    config = MergeConfig(lora_path=tuple(paths), save_to=tmp_path / "m.safetensors", lora_scale=(1.0, 0.5))
    written = Adapter.load(lbm_lora.run_merge(config).adapter)
    found = lbm_lora.merge([loras[0], paths[1]], lora_scale=[1.0, 0.5])
    for name in written.params:
        one, other = written.delta(name), found.delta(name)
        assert one is not None
        assert other is not None
        torch.testing.assert_close(other, one)
    assert found.scales == ("1", "0.5")
    assert found.relative_error < 1e-6
    assert found.metadata.base_fingerprint == loras[0].metadata.base_fingerprint
    assert list(empty.iterdir()) == []


def test_save_to_writes_the_file(loras: list[Adapter], tmp_path: Path) -> None:
    found = lbm_lora.merge(loras, save_to=tmp_path / "m.safetensors", method="ties", rank=2)
    assert found.path == tmp_path / "m.safetensors"
    assert (tmp_path / "m.safetensors").exists()
    assert found.delta(WEIGHT) is not None


def test_one_model_alone_is_refused(loras: list[Adapter]) -> None:
    with pytest.raises(ConfigError, match="base and tuned fit the scales together"):
        lbm_lora.merge(loras, base=small_state(1))
