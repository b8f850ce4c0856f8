"""The workflow `extract`: files it reads, files it leaves, and what it says of them."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lbm_lora.adapter import load_adapter
from lbm_lora.adapter.packed_index import CODED_BITS
from lbm_lora.checkpoint import fingerprint, open_checkpoint
from lbm_lora.configs.base import BaseConfig
from lbm_lora.configs.extract import ExtractConfig
from lbm_lora.errors import CheckpointError, ConfigError, InputError, OutputError, PairingError, PatternError
from lbm_lora.factorize import WIDTHS
from lbm_lora.naming import ModuleName
from lbm_lora.progress import LbmLoraWarning
from lbm_lora.ranks import Choice, WidthAllocator
from lbm_lora.workflows import base
from lbm_lora.workflows.extract import run
from standins import Lbm


def config(lbm: Lbm, save_to: Path, **changes: object) -> ExtractConfig:
    plain = ExtractConfig(base_model_path=lbm.base, tuned_model_path=lbm.tuned, save_to=save_to, rank=4, conv_rank=2)
    return dataclasses.replace(plain, **changes)


def test_every_tensor_is_accounted_for_and_alpha_is_the_stored_rank(lbm: Lbm, tmp_path: Path) -> None:
    result = run(config(lbm, tmp_path / "l.safetensors", rank=9999, conv_rank=9999))
    adapter = load_adapter(result.adapter)
    counts = result.report.counts
    assert sum(counts.values()) == result.report.tensors == len(adapter.params)
    assert counts["unchanged"] == counts["excluded"] == 0
    assert all(module.alpha == module.rank for module in adapter.modules.values())
    assert adapter.modules[ModuleName("conv_out")].rank == 4  # 4 rows, whatever was asked for


def test_the_header_explains_the_file(lbm: Lbm, tmp_path: Path) -> None:
    result = run(config(lbm, tmp_path / "l.safetensors"))
    with safe_open(result.adapter, "pt") as file:
        header = file.metadata()
    with open_checkpoint(lbm.base) as base, open_checkpoint(lbm.tuned) as tuned:
        assert header["lbm_lora_base_fingerprint"] == fingerprint(base.component()).digest
        assert header["lbm_lora_tuned_fingerprint"] == fingerprint(tuned.component()).digest
    assert json.loads(header["lbm_lora_counts"]) == result.report.counts
    assert json.loads(header["lbm_lora_errors"])["relative_error"] == pytest.approx(
        result.report.relative_error, rel=1e-5
    )
    settings = json.loads(header["lbm_lora_settings"])
    assert (settings["rank"], settings["conv_rank"], settings["dtype"]) == (4, 2, "bf16")
    assert header["ss_network_module"] == "networks.lora"
    assert "ss_base_model_version" not in header
    assert not any(str(tmp_path) in value or str(lbm.base.parent) in value for value in header.values())


def test_the_documented_sidecar(lbm: Lbm, tmp_path: Path) -> None:
    result = run(config(lbm, tmp_path / "my_lora.safetensors"))
    assert result.sidecar == tmp_path / "my_lora_config.yaml"
    facts = yaml.safe_load(result.sidecar.read_text(encoding="utf-8"))
    documented = {
        *("architecture", "base_model", "change_threshold", "conv_rank", "coverage_percentage", "extraction_method"),
        *("native_naming", "rank", "total_analyzed_layers", "total_lora_modules"),
    }
    assert documented <= facts.keys()
    assert facts["coverage_percentage"] == "100.0%"
    assert facts["total_lora_modules"] == result.report.matched
    assert facts["total_analyzed_layers"] == result.report.matched < result.report.tensors
    attention = run(config(lbm, tmp_path / "attention.safetensors", target_coverage="attention"))
    assert yaml.safe_load(attention.sidecar.read_text())["total_analyzed_layers"] == facts["total_analyzed_layers"]
    assert attention.report.matched < result.report.matched


def test_a_rerun_gives_the_same_bytes(lbm: Lbm, tmp_path: Path) -> None:
    one, other = (run(config(lbm, tmp_path / folder / "l.safetensors")).adapter for folder in ("a", "b"))
    assert one.read_bytes() == other.read_bytes()


def test_containers_do_not_matter(lbm: Lbm, tmp_path: Path) -> None:
    """A Lightning checkpoint with wrapper segments gives the same factors as the published layout."""
    state = {f"model._orig_mod.{key}": tensor for key, tensor in load_file(lbm.tuned).items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "tuned.ckpt")
    plain = load_file(run(config(lbm, tmp_path / "plain.safetensors")).adapter)
    result = run(config(lbm, tmp_path / "l.safetensors", tuned_model_path=tmp_path / "tuned.ckpt"))
    other = load_file(result.adapter)
    assert plain.keys() == other.keys()
    assert all(torch.equal(plain[key], other[key]) for key in plain)


def test_a_checkpoint_that_is_no_lbm(tmp_path: Path) -> None:
    base = {"encoder.0.weight": torch.randn(6, 5), "encoder.0.bias": torch.randn(6), "table": torch.randn(3, 3)}
    tuned = {name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in base.items()}
    for name, tensors in (("base", base), ("tuned", tuned)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    result = run(
        ExtractConfig(
            base_model_path=tmp_path / "base.safetensors",
            tuned_model_path=tmp_path / "tuned.safetensors",
            save_to=tmp_path / "l.safetensors",
            rank=9999,
            save_precision="float",
        )
    )
    adapter = load_adapter(result.adapter)
    assert adapter.prefix == ""
    for name, tensor in base.items():
        delta = adapter.delta(name)  # pyright: ignore[reportArgumentType]
        assert delta is not None
        assert torch.allclose(delta, tuned[name] - tensor, atol=1e-6)


def test_patterns_and_switches_enter_the_ledger(lbm: Lbm, tmp_path: Path) -> None:
    result = run(config(lbm, tmp_path / "l.safetensors", include=("attn1", "conv_in"), exclude=("conv_in.bias",)))
    reasons = result.report.excluded_reasons
    assert reasons["in --exclude"] == 1
    assert set(reasons) == {"in --exclude", "not in --include"}
    names = load_adapter(result.adapter).params
    assert all("attn1" in name or name == "conv_in.weight" for name in names)
    assert result.report.left_out_share > 0.1

    dense_off = run(config(lbm, tmp_path / "m.safetensors", dense=False))
    assert dense_off.report.counts["dense"] == 0
    assert dense_off.report.relative_error > result.report.noise_floor


def test_target_coverage_is_a_real_choice_with_attn2(lbm: Lbm, tmp_path: Path) -> None:
    sizes = {}
    for coverage in ("attention", "extended", "full"):
        result = run(config(lbm, tmp_path / f"{coverage}.safetensors", target_coverage=coverage))
        modules = load_adapter(result.adapter).modules
        sizes[coverage] = len(modules)
        assert any("attn2.to_k" in name for name in modules)
    assert sizes["attention"] < sizes["extended"] < sizes["full"]


def test_min_diff_is_an_absolute_threshold(lbm: Lbm, tmp_path: Path) -> None:
    everything = run(config(lbm, tmp_path / "l.safetensors", min_diff=1e-9))
    assert everything.report.counts["excluded"] == 0
    some = run(config(lbm, tmp_path / "m.safetensors", min_diff=0.02))
    assert 0 < some.report.counts["excluded"] < some.report.tensors
    assert list(some.report.excluded_reasons) == ["largest change below --min_diff 0.02"]


def test_a_vae_that_differs_is_named(lbm: Lbm, tmp_path: Path) -> None:
    tensors = load_file(lbm.tuned)
    key = next(key for key in tensors if key.startswith("vae."))
    save_file(tensors | {key: tensors[key] + 1}, tmp_path / "tuned.safetensors")
    with pytest.warns(LbmLoraWarning, match=rf"^The VAEs differ in 1 of 248 tensors \({re.escape(key)} \.\.\.\)"):
        run(config(lbm, tmp_path / "l.safetensors", tuned_model_path=tmp_path / "tuned.safetensors"))
    run(config(lbm, tmp_path / "m.safetensors"))


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"rank": 0}, InputError, "rank must be at least 1, got 0"),
        ({"save_to": Path("l.bin")}, OutputError, "save_to l.bin: a LoRA is a .safetensors file"),
        ({"min_diff": -1.0}, ConfigError, "min_diff must be 0 or more, got -1"),
        ({"include": ("attn3",)}, PatternError, "pattern 'attn3' matches none of"),
        ({"include": ("attn1",), "target_coverage": "attention"}, ConfigError, "both choose layers"),
    ],
)
def test_bad_settings_are_refused_and_nothing_is_written(
    lbm: Lbm, tmp_path: Path, changes: dict[str, object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        run(dataclasses.replace(config(lbm, tmp_path / "l.safetensors"), **changes))
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_an_input_is_refused(lbm: Lbm) -> None:
    before = lbm.base.read_bytes()
    with pytest.raises(OutputError, match="would be overwritten"):
        run(config(lbm, lbm.base))
    assert lbm.base.read_bytes() == before


def test_equal_files_have_nothing_to_extract(lbm: Lbm, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Are base and tuned the same file"):
        run(config(lbm, tmp_path / "l.safetensors", tuned_model_path=lbm.base))
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_is_not_finite_stops_the_run(lbm: Lbm, tmp_path: Path) -> None:
    tensors = load_file(lbm.tuned)
    tensors["denoiser.conv_in.weight"].view(-1)[3] = float("nan")
    save_file(tensors, tmp_path / "tuned.safetensors")
    broken = config(lbm, tmp_path / "out" / "l.safetensors", tuned_model_path=tmp_path / "tuned.safetensors")
    with pytest.raises(PairingError, match=r"conv_in\.weight: 1 of 576 tuned values"):
        run(broken)
    assert not list((tmp_path / "out").glob("*"))
    result = run(dataclasses.replace(broken, exclude=("conv_in.weight",)))
    assert result.report.excluded_reasons == {"in --exclude": 1}


def test_create_base_model_makes_a_missing_base(lbm: Lbm, tmp_path: Path) -> None:
    made = config(lbm, tmp_path / "l.safetensors", base_model_path=tmp_path / "base.ckpt", create_base_model=True)
    expected = load_file(run(config(lbm, tmp_path / "m.safetensors")).adapter)
    found = load_file(run(made).adapter)
    assert (tmp_path / "base.safetensors").exists()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_base_in_the_place_of_tuned_is_named(lbm: Lbm, tmp_path: Path) -> None:
    config_path = lbm.tuned.parent / "config.yaml"
    made = base.run(BaseConfig(config_path=config_path, save_path=tmp_path / "base.ckpt")).base
    for path in (made.ckpt, made.safetensors):
        swapped = config(lbm, tmp_path / "l.safetensors", base_model_path=lbm.tuned, tuned_model_path=path)
        with pytest.raises(PairingError) as caught:
            run(swapped)
        assert str(caught.value).startswith(f"{path} is marked as an exact base and {lbm.tuned} is not: ")
        assert not (tmp_path / "l.safetensors").exists()


def test_a_packed_file_keeps_its_size_whatever_its_counts_take(
    lbm: Lbm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size is known only once all counts are coded; a second choice follows if it is too large."""
    expected: list[int] = []
    expect = WidthAllocator.expect

    def counted(self: WidthAllocator, choice: Choice, data_bytes: int) -> None:
        expected.append(data_bytes)
        expect(self, choice, data_bytes)

    monkeypatch.setattr(WidthAllocator, "expect", counted)
    for width in WIDTHS:
        monkeypatch.setitem(CODED_BITS, width, 0.6 * CODED_BITS[width])
    given = ExtractConfig(base_model_path=lbm.base, tuned_model_path=lbm.tuned, save_to=tmp_path / "l.safetensors")
    result = run(dataclasses.replace(given, max_size=("100kB",), save_precision="auto"))
    assert expected
    assert expected[0] > 100_000
    assert 90_000 < result.nbytes == result.adapter.stat().st_size <= 100_000
