"""The workflow `merge`: files in, one file out that does the same; chains of tuned checkpoints; refusals."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lbm_lora.adapter import load_adapter
from lbm_lora.adapter.metadata import SETTINGS_KEY, parsed
from lbm_lora.checkpoint import fingerprint, open_checkpoint
from lbm_lora.configs.extract import ExtractConfig
from lbm_lora.configs.fuse import FuseConfig
from lbm_lora.configs.merge import MergeConfig
from lbm_lora.errors import (
    AdapterError,
    CheckpointError,
    ConfigError,
    InputError,
    OutputError,
    PatternError,
    WrongBaseError,
)
from lbm_lora.progress import LbmLoraWarning
from lbm_lora.workflows import calibrate, extract, fuse
from lbm_lora.workflows.merge import MergeResult, run
from smallnet import small_state
from standins import Lbm

PREFIX = "denoiser."


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three checkpoints of the small network: base, tuned, and further tuned."""
    folder = tmp_path_factory.mktemp("nets")
    paths = [folder / f"{name}.safetensors" for name in ("base", "tuned", "further")]
    for seed, path in enumerate(paths, 1):
        save_file({key: tensor.contiguous() for key, tensor in small_state(seed, PREFIX).items()}, path)
    return paths


def extracted(base: Path, tuned: Path, path: Path, rank: int = 9999) -> Path:
    config = ExtractConfig(
        base_model_path=base, tuned_model_path=tuned, save_to=path, rank=rank, save_precision="float"
    )
    return extract.run(config).adapter


@pytest.fixture(scope="module")
def first(nets: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base -> tuned."""
    return extracted(nets[0], nets[1], tmp_path_factory.mktemp("first") / "first.safetensors")


@pytest.fixture(scope="module")
def second(nets: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tuned -> further."""
    return extracted(nets[1], nets[2], tmp_path_factory.mktemp("second") / "second.safetensors")


@pytest.fixture(scope="module")
def other(nets: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base -> further, at a low rank."""
    return extracted(nets[0], nets[2], tmp_path_factory.mktemp("other") / "other.safetensors", rank=2)


def merge(loras: Sequence[Path], path: Path, **options: Any) -> MergeResult:
    return run(MergeConfig(lora_path=tuple(loras), save_to=path / "m.safetensors", **options))


def fused(base: Path, loras: Sequence[Path], scales: Sequence[float | str], path: Path) -> dict[str, torch.Tensor]:
    config = FuseConfig(base_model_path=base, lora_path=tuple(loras), lora_scale=tuple(scales), save_to=path)
    return load_file(fuse.run(config).output)


@pytest.mark.parametrize("is_exact", [False, True])
def test_the_merged_lora_fuses_as_all_of_them_do(
    nets: list[Path], first: Path, other: Path, tmp_path: Path, is_exact: bool
) -> None:
    scales = (0.5, "-1.5,head=0.25")
    result = merge([first, other], tmp_path, lora_scale=scales, exact=is_exact)
    found = fused(nets[0], [result.adapter], [1.0], tmp_path / "one.safetensors")
    wanted = fused(nets[0], [first, other], scales, tmp_path / "both.safetensors")
    base = load_file(nets[0])
    for key, tensor in wanted.items():
        change = (tensor.double() - base[key].double()).norm() + tensor.double().norm()
        assert float((found[key].double() - tensor.double()).norm()) <= 1e-6 * float(change), key
    assert result.relative_error <= 1e-6
    assert [one.lora_scale for one in result.loras] == list(scales)
    assert result.chain == ()


def test_the_file_says_what_it_is_made_of(nets: list[Path], first: Path, other: Path, tmp_path: Path) -> None:
    result = merge([first, other], tmp_path, lora_scale=(1.0, "1,head=0"), method="dare", density=0.25, seed=7)
    metadata = load_adapter(result.adapter).metadata
    with open_checkpoint(nets[0]) as base:
        found = fingerprint(base.component())
    assert (metadata.base_fingerprint, metadata.base_tensors) == (found.digest, found.packed())
    assert metadata.tuned_fingerprint == ""
    assert parsed(metadata.facts, SETTINGS_KEY) == {
        "merged": [
            {"lora": "first.safetensors", "lora_scale": "1"},
            {"lora": "other.safetensors", "lora_scale": "1,head=0"},
        ],
        "merge_method": "dare",
        "density": 0.25,
        "seed": 7,
        "method": "plain",
        "dtype": "fp32",
        "rank_policy": "lossless",
    }
    assert str(tmp_path) not in str(metadata)


@pytest.mark.parametrize("turned", [False, True])
def test_a_chain_is_one_lora_for_the_base(
    nets: list[Path], first: Path, second: Path, tmp_path: Path, turned: bool
) -> None:
    loras = [second, first] if turned else [first, second]
    result = merge(loras, tmp_path)
    assert result.chain == (str(first), str(second))
    found = fused(nets[0], [result.adapter], [1.0], tmp_path / "f.safetensors")  # no other base to allow
    further = {key: tensor for key, tensor in load_file(nets[2]).items() if tensor.is_floating_point()}
    for key, tensor in further.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-6)
    metadata = load_adapter(result.adapter).metadata
    with open_checkpoint(nets[2]) as reached:
        assert metadata.tuned_fingerprint == fingerprint(reached.component()).digest
    with pytest.raises(WrongBaseError):
        fused(nets[1], [result.adapter], [1.0], tmp_path / "g.safetensors")


def test_other_bases_are_refused_or_allowed(nets: list[Path], second: Path, other: Path, tmp_path: Path) -> None:
    with pytest.raises(WrongBaseError, match="different bases") as caught:
        merge([other, second], tmp_path)
    assert "other.safetensors" in str(caught.value)
    assert "second.safetensors" in str(caught.value)
    assert not (tmp_path / "m.safetensors").exists()
    with pytest.warns(LbmLoraWarning, match="different bases"):
        result = merge([other, second], tmp_path, allow_other_base=True)
    with open_checkpoint(nets[0]) as base:
        expected = fingerprint(base.component()).digest
    assert load_adapter(result.adapter).metadata.base_fingerprint == expected


def test_ranks_sizes_and_errors(first: Path, other: Path, tmp_path: Path) -> None:
    assert merge([first, other], tmp_path, rank=1).ranks == (1, 1)
    assert merge([first, other], tmp_path, max_error=0.2).relative_error <= 0.2
    too_small = r"^max_size 0\.1 kB: biases, norms and the header alone take .* kB\. Allow more\.$"
    with pytest.raises(InputError, match=too_small):
        merge([first, other], tmp_path, max_size="100B")
    result = merge([first, other], tmp_path, max_size="12KB")
    assert result.nbytes <= 12_000
    assert parsed(load_adapter(result.adapter).metadata.facts, SETTINGS_KEY)["max_size"] == "12KB"


def test_precisions(first: Path, other: Path, tmp_path: Path) -> None:
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        result = merge([first, other], tmp_path, save_precision=precision)
        assert {module.up.dtype for module in load_adapter(result.adapter).modules.values()} <= {dtype}
        assert 1e-5 < result.relative_error < 1e-2
    half = merge([first], tmp_path, save_precision="bf16").adapter.rename(tmp_path / "half.safetensors")
    kept = load_adapter(merge([half, half], tmp_path).adapter)
    assert {delta.dtype for delta in kept.dense.values()} == {torch.bfloat16}
    mixed = load_adapter(merge([half, other], tmp_path).adapter)
    assert {delta.dtype for delta in mixed.dense.values()} == {torch.float32}


def test_inputs_and_outputs_that_cannot_be(first: Path, other: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^lora_path names no file"):
        merge([], tmp_path)
    with pytest.raises(ConfigError, match="lora_scale has 3 values for 2 LoRAs"):
        merge([first, other], tmp_path, lora_scale=(1.0, 2.0, 3.0))
    with pytest.raises(OutputError, match="would be overwritten"):
        run(MergeConfig(lora_path=(first, other), save_to=other))
    with pytest.raises(OutputError, match=r"a LoRA is a \.safetensors file"):
        run(MergeConfig(lora_path=(first, other), save_to=tmp_path / "m.ckpt"))
    with pytest.raises(PatternError, match="nowhere"):
        merge([first, other], tmp_path, lora_scale=("1,nowhere=0",))
    with pytest.raises(AdapterError, match="nothing is left"):
        merge([first, first], tmp_path, lora_scale=(1.0, -1.0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_statistics_weigh_what_is_lost(lbm: Lbm, pairs: Path, tmp_path: Path) -> None:
    from lbm_lora.configs.calibrate import CalibrateConfig

    statistics, image = tmp_path / "s.safetensors", min(pairs.glob("*.source.png"))
    calibrate.run(CalibrateConfig(tuned_model_path=lbm.tuned, images=str(image), save_to=statistics, size=64, probes=1))
    lora = extracted(lbm.base, lbm.tuned, tmp_path / "l.safetensors")
    result = merge([lora, lora], tmp_path, lora_scale=(0.5,), calibration=statistics, rank=2)
    settings = parsed(load_adapter(result.adapter).metadata.facts, SETTINGS_KEY)
    assert (settings["method"], settings["calibration"]) == ("calibrated", "s.safetensors")
    plain = merge([lora, lora], tmp_path, lora_scale=(0.5,), rank=2)
    assert plain.relative_error < result.relative_error < 1  # it is not the weights that are kept best
    strange = tmp_path / "strange.safetensors"
    save_file(
        {"denoiser.other.lora_up.weight": torch.ones(2, 1), "denoiser.other.lora_down.weight": torch.ones(1, 2)},
        strange,
    )
    with (
        pytest.warns(LbmLoraWarning, match="does not say which base"),
        pytest.raises(CheckpointError, match="no statistics for 1 module of the LoRAs: other"),
    ):
        merge([lora, strange], tmp_path, calibration=statistics, rank=2)
