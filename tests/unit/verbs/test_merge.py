"""`merge`: LoRAs in, one out that does the same; chains of tuned checkpoints; refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lbm_lora.adapter import load_adapter
from lbm_lora.adapter.metadata import SETTINGS_KEY, parsed
from lbm_lora.checkpoint import fingerprint, open_checkpoint
from lbm_lora.errors import (
    AdapterError,
    ConfigError,
    InputError,
    OutputError,
    PatternError,
    WrongBaseError,
)
from lbm_lora.progress import LbmLoraWarning
from lbm_lora.verbs.calibrate import calibrate
from lbm_lora.verbs.extract import extract
from lbm_lora.verbs.fuse import fuse
from lbm_lora.verbs.merge import merge
from smallnet import small_state
from standins import Lbm


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three checkpoints of the small network: base, tuned, and further tuned."""
    folder = tmp_path_factory.mktemp("nets")
    paths = [folder / f"{name}.safetensors" for name in ("base", "tuned", "further")]
    for seed, path in enumerate(paths, 1):
        save_file({key: tensor.contiguous() for key, tensor in small_state(seed, "denoiser.").items()}, path)
    return paths


@pytest.fixture(scope="module")
def loras(nets: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """base -> tuned, tuned -> further, and base -> further at a low rank."""
    folder = tmp_path_factory.mktemp("loras")
    for name, base, tuned, rank in (("first", 0, 1, 9999), ("second", 1, 2, 9999), ("other", 0, 2, 2)):
        path = folder / f"{name}.safetensors"
        extract(nets[base], nets[tuned], save_to=path, rank=rank, save_precision="float")
    return [folder / f"{name}.safetensors" for name in ("first", "second", "other")]


def digest(path: Path) -> str:
    with open_checkpoint(path) as checkpoint:
        return fingerprint(checkpoint.component()).digest


@pytest.mark.parametrize("exact", [False, True])
def test_the_merged_lora_fuses_as_all_of_them_do(
    nets: list[Path], loras: list[Path], tmp_path: Path, exact: bool
) -> None:
    first, _, other = loras
    scales = (0.5, "-1.5,head=0.25")
    merged = merge([first, other], lora_scale=scales, exact=exact)
    found, wanted = fuse(nets[0], merged), fuse(nets[0], [first, other], lora_scale=scales)
    base = load_file(nets[0])
    for key, tensor in wanted.items():
        size = (tensor.double() - base[key].double()).norm() + tensor.double().norm()
        assert float((found[key].double() - tensor.double()).norm()) <= 1e-6 * float(size), key
    assert merged.relative_error <= 1e-6
    assert merged.scales == ("0.5", "-1.5,head=0.25")
    written = merge([load_adapter(first), other], lora_scale=scales, exact=exact, save_to=tmp_path / "m.safetensors")
    assert written.path == tmp_path / "m.safetensors"
    for name in merged.params:
        one, two = written.delta(name), merged.delta(name)
        assert one is not None
        assert two is not None
        torch.testing.assert_close(one, two)


def test_the_file_says_what_it_is_made_of(nets: list[Path], loras: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    merge(loras[::2], save_to=path, lora_scale=(1.0, "1,head=0"), method="dare", density=0.25, seed=7)
    metadata = load_adapter(path).metadata
    assert (metadata.base_fingerprint, metadata.tuned_fingerprint) == (digest(nets[0]), "")
    settings = parsed(metadata.facts, SETTINGS_KEY)
    assert settings["merged"] == [
        {"lora": "first.safetensors", "lora_scale": "1"},
        {"lora": "other.safetensors", "lora_scale": "1,head=0"},
    ]
    assert (settings["merge_method"], settings["density"], settings["seed"]) == ("dare", 0.25, 7)
    assert str(tmp_path) not in str(metadata)


def test_a_chain_is_one_lora_for_the_base(nets: list[Path], loras: list[Path]) -> None:
    for chain in (loras[:2], loras[1::-1]):
        merged = merge(chain)
        found = fuse(nets[0], merged)  # no other base to allow
        for key, tensor in load_file(nets[2]).items():
            if tensor.is_floating_point():
                torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-6)
        assert merged.metadata.tuned_fingerprint == digest(nets[2])
        with pytest.raises(WrongBaseError):
            fuse(nets[1], merged)


def test_other_bases_are_refused_or_allowed(nets: list[Path], loras: list[Path]) -> None:
    pair = [loras[2], loras[1]]
    with pytest.raises(WrongBaseError, match=r"different bases.*") as caught:
        merge(pair)
    assert all(path.name in str(caught.value) for path in pair)
    with pytest.warns(LbmLoraWarning, match="different bases"):
        merged = merge(pair, allow_other_base=True)
    assert merged.metadata.base_fingerprint == digest(nets[0])


def test_ranks_sizes_and_precisions(loras: list[Path], tmp_path: Path) -> None:
    pair, path = loras[::2], tmp_path / "m.safetensors"
    assert {module.rank for module in merge(pair, rank=1).modules.values()} == {1}
    assert merge(pair, max_error=0.2).relative_error <= 0.2
    with pytest.raises(InputError, match=r"^max_size 0\.1 kB: biases, norms and the header alone take .* kB\."):
        merge(pair, save_to=path, max_size="100B")
    merge(pair, save_to=path, max_size="12KB")
    assert path.stat().st_size <= 12_000
    half = merge(pair, save_precision="bf16")
    assert {delta.dtype for delta in half.dense.values()} == {torch.bfloat16}
    assert 1e-5 < half.relative_error < 1e-2
    assert {delta.dtype for delta in merge([half, half]).dense.values()} == {torch.bfloat16}
    assert {delta.dtype for delta in merge([half, pair[1]]).dense.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"loras": []}, ConfigError, "^loras names no file"),
        ({"lora_scale": (1.0, 2.0, 3.0)}, ConfigError, "lora_scale has 3 values for 2 LoRAs"),
        ({"lora_scale": ("1,nowhere=0",)}, PatternError, "nowhere"),
        ({"save_to": "m.ckpt"}, OutputError, r"a LoRA is a \.safetensors file"),
        ({"base": "b"}, ConfigError, "^base is for fitting the scales: add images"),
    ],
)
def test_what_cannot_be_merged(loras: list[Path], changes: dict[str, Any], error: type[Exception], text: str) -> None:
    options: dict[str, Any] = {"loras": loras[::2], **changes}
    with pytest.raises(error, match=text):
        merge(**options)


def test_an_output_that_is_an_input_and_deltas_that_cancel(loras: list[Path]) -> None:
    before = loras[2].read_bytes()
    with pytest.raises(OutputError, match="would be overwritten"):
        merge(loras[::2], save_to=loras[2])
    assert loras[2].read_bytes() == before
    with pytest.raises(AdapterError, match="nothing is left"):
        merge([loras[0], loras[0]], lora_scale=(1.0, -1.0))


@pytest.mark.slow
def test_statistics_weigh_what_is_lost(lbm: Lbm, write_images: Callable[[int], Path], tmp_path: Path) -> None:
    statistics = tmp_path / "s.safetensors"
    calibrate(lbm.tuned, write_images(1), save_to=statistics, size=64, probes=1)
    lora = extract(lbm.base, lbm.tuned, rank=9999, save_precision="float")
    options: Any = {"lora_scale": 0.5, "rank": 2}
    plain, weighed = merge([lora, lora], **options), merge([lora, lora], calibration=statistics, **options)
    assert plain.relative_error < weighed.relative_error < 1  # it is not the weights that are kept best
