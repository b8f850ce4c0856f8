"""`extract`: what it stores, what it refuses, and that values in Python give what files do."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import lbm_lora
from lbm_lora.adapter import Adapter
from lbm_lora.adapter.packed_index import CODED_BITS
from lbm_lora.errors import CheckpointError, ConfigError, OutputError, PairingError, PatternError
from lbm_lora.factorize import WIDTHS
from lbm_lora.naming import ModuleName
from lbm_lora.progress import LbmLoraWarning
from lbm_lora.verbs.extract import extract, extract_several
from smallnet import small_state
from standins import Lbm

Save = Callable[[str, Mapping[str, Tensor]], Path]
SMALL: dict[str, Any] = {"rank": 4, "conv_rank": 2}


@pytest.fixture
def pair(save: Save) -> tuple[Path, Path]:
    """Base and tuned of the small network, as files."""
    return save("base.safetensors", small_state(1)), save("tuned.safetensors", small_state(2))


def same(one: Adapter, other: Adapter) -> bool:
    """Whether two adapters hold the same bits under the same names."""
    pairs = [(one.dense[name], other.dense[name]) for name in one.dense]
    for name, module in one.modules.items():
        twin = other.modules[name]
        pairs += [
            (module.up, twin.up),
            (module.down, twin.down),
            (torch.tensor(module.alpha), torch.tensor(twin.alpha)),
        ]
    alike = all(left.dtype == right.dtype and torch.equal(left, right) for left, right in pairs)
    return set(one.params) == set(other.params) and alike


def test_every_tensor_is_accounted_for_and_alpha_is_the_stored_rank(lbm: Lbm) -> None:
    lora = extract(lbm.base, lbm.tuned, rank=9999, conv_rank=9999)
    counts = lora.report.counts
    assert sum(counts.values()) == lora.report.tensors == len(lora.params)
    assert counts["unchanged"] == counts["excluded"] == 0
    assert all(module.alpha == module.rank for module in lora.modules.values())
    assert lora.modules[ModuleName("conv_out")].rank == 4  # 4 rows, whatever was asked for


def test_the_header_explains_the_file_without_folders(lbm: Lbm, tmp_path: Path) -> None:
    lora = extract(lbm.base, lbm.tuned, save_to=tmp_path / "l.safetensors", **SMALL)
    with safe_open(tmp_path / "l.safetensors", "pt") as file:
        header = file.metadata()
    assert json.loads(header["lbm_lora_counts"]) == lora.report.counts
    settings = json.loads(header["lbm_lora_settings"])
    assert (settings["rank"], settings["conv_rank"], settings["dtype"]) == (4, 2, "bf16")
    assert header["ss_network_module"] == "networks.lora"
    assert "ss_base_model_version" not in header
    assert not any(str(tmp_path) in value or str(lbm.base.parent) in value for value in header.values())


def test_containers_do_not_matter(lbm: Lbm, tmp_path: Path) -> None:
    """A Lightning checkpoint with wrapper segments gives the same factors as the published layout."""
    state = {f"model._orig_mod.{key}": tensor for key, tensor in load_file(lbm.tuned).items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "tuned.ckpt")
    assert same(extract(lbm.base, lbm.tuned, **SMALL), extract(lbm.base, tmp_path / "tuned.ckpt", **SMALL))


@pytest.mark.parametrize("options", [{"rank": 3}, {"rank": 2, "save_precision": "int8"}, {"max_error": 0.4}])
def test_paths_open_checkpoints_and_state_dicts_give_the_tensors_of_the_file(
    pair: tuple[Path, Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    written = extract(*pair, save_to=tmp_path / "l.safetensors", **options)
    assert written.path == tmp_path / "l.safetensors"
    with lbm_lora.open_checkpoint(pair[0]) as base, lbm_lora.open_checkpoint(pair[1]) as tuned:
        values: list[tuple[Any, Any]] = [pair, (str(pair[0]), pair[1]), (base, tuned), (small_state(1), small_state(2))]
        loras = [extract(*value, **options) for value in values]
        base.read("point.bias")  # still open
    assert all(same(one, written) for one in loras)
    assert all(one.metadata == written.metadata for one in loras[:3])
    saved = loras[0].save(tmp_path / "saved.safetensors")
    with lbm_lora.open_checkpoint(tmp_path / "l.safetensors") as one, lbm_lora.open_checkpoint(saved) as other:
        assert (one.metadata, one.specs) == (other.metadata, other.specs)


def test_options_are_plain_python_values_and_the_callers_tensors_stay(pair: tuple[Path, Path]) -> None:
    state = small_state(2)
    before = {name: tensor.clone() for name, tensor in state.items()}
    lora = extract(pair[0], state, include="head", rank=2, dense=False, save_precision=torch.float16)
    assert set(lora.modules) == {"head.0", "head.2"}
    assert lora.modules[ModuleName("head.0")].up.dtype == torch.float16
    assert repr(lora) == "<MeasuredAdapter: 2 lora modules of rank 2, 0 dense deltas, fp16, 0.0 MB>"
    assert type(lora.cast(torch.float32)) is Adapter
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_several_ranks_or_sizes_come_out_of_one_pass(pair: tuple[Path, Path], tmp_path: Path) -> None:
    low, high = extract_several(*pair, ranks=[1, 4])
    assert (low.modules[ModuleName("head.0")].rank, high.modules[ModuleName("head.0")].rank) == (1, 4)
    written = extract_several(*pair, ranks=[1, 4], save_to=tmp_path / "l.safetensors")
    assert [one.path for one in written] == [tmp_path / "l_r1.safetensors", tmp_path / "l_r4.safetensors"]
    assert same(low, written[0])
    assert len(extract_several(*pair, max_size="20kB")) == 1
    for name, values in (("ranks", [1, 2]), ("max_size", ["20kB", "30kB"])):
        several: Any = {name: values}
        with pytest.raises(ConfigError, match=rf"^{name} asks for 2 LoRAs, extract gives one\. Call extract_several"):
            extract(*pair, **several)


@pytest.mark.parametrize("rank", [4, 32])
def test_a_rank_is_no_second_way_to_choose_ranks(pair: tuple[Path, Path], rank: int) -> None:
    for other in ({"max_size": "20kB"}, {"ranks": [2]}, {"keep_energy": 0.9}):
        asked: Any = {"rank": rank, **other}
        with pytest.raises(ConfigError, match=r"^rank and .* both choose the ranks"):
            extract_several(*pair, **asked)


def test_patterns_coverage_and_thresholds_enter_the_ledger(lbm: Lbm) -> None:
    lora = extract(lbm.base, lbm.tuned, include=("attn1", "conv_in"), exclude="conv_in.bias", **SMALL)
    assert lora.report.excluded_reasons["in --exclude"] == 1
    assert set(lora.report.excluded_reasons) == {"in --exclude", "not in --include"}
    assert all("attn1" in name or name == "conv_in.weight" for name in lora.params)
    modules = [extract(lbm.base, lbm.tuned, target_coverage=one, **SMALL).modules for one in ("attention", "extended")]
    assert len(modules[0]) < len(modules[1])
    assert all(any("attn2.to_k" in name for name in one) for one in modules)
    some = extract(lbm.base, lbm.tuned, min_diff=0.02, **SMALL)
    assert 0 < some.report.counts["excluded"] < some.report.tensors
    assert list(some.report.excluded_reasons) == ["largest change below --min_diff 0.02"]


def test_a_vae_that_differs_is_named(lbm: Lbm) -> None:
    tensors = load_file(lbm.tuned)
    key = next(key for key in tensors if key.startswith("vae."))
    with pytest.warns(LbmLoraWarning, match=rf"^The VAEs differ in 1 of 248 tensors \({re.escape(key)} \.\.\.\)"):
        extract(lbm.base, tensors | {key: tensors[key] + 1}, **SMALL)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"save_to": "l.bin"}, OutputError, "save_to l.bin: a LoRA is a .safetensors file"),
        ({"include": ("attn3",)}, PatternError, "pattern 'attn3' matches none of"),
        ({"include": ("attn1",), "target_coverage": "attention"}, ConfigError, "both choose layers"),
        ({"images": "x"}, ConfigError, "^images needs calibration; for other LoRAs"),
        ({"max_output_error": 0.1}, ConfigError, "^max_output_error needs the denoiser's output: add"),
        ({"calibration": "s", "max_error": 0.1}, ConfigError, "^max_error limits the weight error, but calibration"),
        ({"calibration": "s", "min_psnr": 40.0}, ConfigError, "^min_psnr needs images: add calibration_images, or"),
        ({"calibration": "s", "calibration_images": "x"}, ConfigError, "^calibration and calibration_images both"),
    ],
)
def test_bad_settings_are_refused_and_nothing_is_written(
    lbm: Lbm, tmp_path: Path, changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    options: dict[str, Any] = {"save_to": tmp_path / "l.safetensors", **changes}
    with pytest.raises(error, match=text):
        extract(lbm.base, lbm.tuned, **options)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_an_input_is_refused(lbm: Lbm) -> None:
    before = lbm.base.read_bytes()
    with pytest.raises(OutputError, match="would be overwritten"):
        extract(lbm.base, lbm.tuned, save_to=lbm.base)
    assert lbm.base.read_bytes() == before


def test_checkpoints_that_give_no_lora(lbm: Lbm, tmp_path: Path) -> None:
    path = tmp_path / "l.safetensors"
    with pytest.raises(CheckpointError, match="Are base and tuned the same file"):
        extract(lbm.base, lbm.base, save_to=path)
    tensors = load_file(lbm.tuned)
    tensors["denoiser.conv_in.weight"].view(-1)[3] = float("nan")
    with pytest.raises(PairingError, match=r"conv_in\.weight: 1 of 576 tuned values"):
        extract(lbm.base, tensors, save_to=path)
    assert list(tmp_path.iterdir()) == []
    assert extract(lbm.base, tensors, exclude="conv_in.weight").report.excluded_reasons == {"in --exclude": 1}


def test_a_missing_base_is_made_and_known_in_the_place_of_tuned(lbm: Lbm, tmp_path: Path) -> None:
    made = tmp_path / "base.ckpt"
    lora = extract(made, lbm.tuned, create_base_model=True, **SMALL)
    assert (tmp_path / "base.safetensors").exists()
    assert same(lora, extract(lbm.base, lbm.tuned, **SMALL))
    with pytest.raises(PairingError) as caught:
        extract(lbm.tuned, made)
    assert str(caught.value).startswith(f"{made} is marked as an exact base and {lbm.tuned} is not: ")


def test_a_packed_file_keeps_its_size_whatever_its_counts_take(
    lbm: Lbm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size is known only once all counts are coded; a second choice follows if it is too large."""
    for width in WIDTHS:
        monkeypatch.setitem(CODED_BITS, width, 0.6 * CODED_BITS[width])
    path = tmp_path / "l.safetensors"
    extract(lbm.base, lbm.tuned, save_to=path, max_size="100kB", save_precision="auto")
    assert 90_000 < path.stat().st_size <= 100_000


def test_a_checkpoint_that_is_no_lbm(save: Save) -> None:
    base = {"encoder.0.weight": torch.randn(6, 5), "encoder.0.bias": torch.randn(6), "table": torch.randn(3, 3)}
    tuned = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in base.items()}
    lora = extract(save("base.safetensors", base), tuned, rank=9999, save_precision="float")
    assert lora.prefix == ""
    for name, tensor in base.items():
        delta = lora.delta(name)  # pyright: ignore[reportArgumentType]
        assert delta is not None
        assert torch.allclose(delta, tuned[name] - tensor, atol=1e-6)
