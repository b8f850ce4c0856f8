"""`merge` and `resize` of values: paths and adapters, as the command's files."""

from pathlib import Path
from typing import Any

import pytest
import torch

import lbm_lora
from lbm_lora import Adapter, ConfigError, MergeConfig, OutputError, ResizeConfig
from lbm_lora.naming import ParamName
from lbm_lora.progress import Silent
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


def test_a_resized_adapter_is_that_of_the_command(loras: list[Adapter], tmp_path: Path, empty: Path) -> None:
    path = loras[0].save(tmp_path / "lora.safetensors")
    result = lbm_lora.run_resize(ResizeConfig(lora_path=path, save_to=tmp_path / "small.safetensors", rank=2))
    written = lbm_lora.load_adapter(result.adapter)
    for given in (loras[0], path):
        found = lbm_lora.resize(given, rank=2)
        assert found.params == written.params
        for name, module in written.modules.items():
            assert torch.equal(found.modules[name].up, module.up)
            assert torch.equal(found.modules[name].down, module.down)
        assert found.resize_error == pytest.approx(result.resize_error)
    assert list(empty.iterdir()) == []
    again = lbm_lora.resize(path, rank=2, save_to=tmp_path / "again.safetensors")
    assert again.path == tmp_path / "again.safetensors"
    assert (tmp_path / "again.safetensors").read_bytes() == result.adapter.read_bytes()


def test_several_ranks_are_several_adapters(loras: list[Adapter]) -> None:
    several_ranks: Any = {"ranks": (1, 2)}
    several = lbm_lora.resize_several(loras[0], **several_ranks)
    assert [max(module.rank for module in one.modules.values()) for one in several] == [1, 2]
    with pytest.raises(ConfigError, match=r"^ranks asks for 2 LoRAs, resize gives one\. Call resize_several\.$"):
        lbm_lora.resize(loras[0], **several_ranks)


def test_several_files_get_their_paths_together_or_not_at_all(loras: list[Adapter], tmp_path: Path) -> None:
    class Meanwhile(Silent):
        def start(self, total: int, what: str) -> None:
            if what == "resizing":
                (tmp_path / "o_r2.safetensors").write_bytes(b"theirs")

    options: Any = {"ranks": (1, 2), "save_to": tmp_path / "o.safetensors", "progress": Meanwhile()}
    with pytest.raises(OutputError, match=r"o_r2\.safetensors appeared while this command ran"):
        lbm_lora.resize_several(loras[0], **options)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("o_r2.safetensors", b"theirs")]
