"""The workflow `convert`: what is written in each format, what is refused before anything is read."""

import dataclasses
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save_file

from lbm_lora.adapter import Adapter, load_adapter
from lbm_lora.adapter.metadata import ERRORS_KEY
from lbm_lora.configs.convert import ConvertConfig
from lbm_lora.configs.values import FormatName
from lbm_lora.errors import AdapterError, ConfigError, OutputError, WrongBaseError
from lbm_lora.verbs.extract import extract
from lbm_lora.workflows.convert import run
from standins import Lbm

FORMATS: tuple[FormatName, ...] = get_args(FormatName)


@pytest.fixture(scope="module")
def lora(lbm: Lbm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the three modules at each end of the denoiser, and of two norms."""
    path = tmp_path_factory.mktemp("lora") / "l.safetensors"
    ends = ("conv_in", "time_embedding", "conv_out", "conv_norm_out", "mid_block.resnets.0.norm1")
    extract(
            base=lbm.base, tuned=lbm.tuned, save_to=path, rank=4, conv_rank=2, include=ends
        )
    return path


def config(lora: Path, folder: Path, to: FormatName, **changes: Any) -> ConvertConfig:
    save_to = folder / (f"{to}" if to == "peft" else f"{to}.safetensors")
    return dataclasses.replace(ConvertConfig(lora_path=lora, to=to, save_to=save_to), **changes)


def same(one: Adapter, other: Adapter) -> bool:
    """Whether two LoRAs have the same deltas, to the bit."""
    if set(one.params) != set(other.params):
        return False
    pairs = [(one.delta(name), other.delta(name)) for name in one.params]
    return all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs)


def is_factors_alone(to: FormatName) -> bool:
    return to not in ("native", "comfyui")


@pytest.mark.parametrize("to", FORMATS)
def test_each_format_leads_back_to_the_same_file(lora: Path, tmp_path: Path, to: FormatName) -> None:
    drop = {"biases": "drop", "norms": "drop"} if is_factors_alone(to) else {}
    result = run(config(lora, tmp_path, to, **drop))
    before = load_adapter(lora)
    kept = before.filtered(lambda name: name not in before.dense) if drop else before
    assert (result.source, result.to, result.modules) == ("native", to, len(before.modules))
    assert result.biases + result.norms + result.others == len(kept.dense)
    assert set(result.dropped) == (set(before.dense) if drop else set())
    assert result.nbytes == sum(path.stat().st_size for path in result.files)
    back = run(config(result.output, tmp_path, "native", save_to=tmp_path / "back.safetensors"))
    assert back.source == to
    after = load_adapter(back.output)
    facts = {key: value for key, value in before.metadata.facts.items() if not drop or key != ERRORS_KEY}
    assert after.metadata == dataclasses.replace(before.metadata, facts=facts)
    assert after.prefix == before.prefix
    assert same(after, kept)


@pytest.mark.parametrize("to", [to for to in FORMATS if is_factors_alone(to) and to != "lycoris"])
def test_what_a_format_cannot_hold_is_an_error_that_counts_and_offers(
    lora: Path, tmp_path: Path, to: FormatName
) -> None:
    with pytest.raises(AdapterError, match=r"\d+ .*biases|norms"):
        run(config(lora, tmp_path, to))
    assert list(tmp_path.iterdir()) == []


def test_precision_and_rank(lora: Path, tmp_path: Path) -> None:
    before = load_adapter(lora)
    result = run(config(lora, tmp_path, "native", save_precision="float", rank=1))
    after = load_adapter(result.output)
    assert {module.rank for module in after.modules.values()} == {1}
    assert {module.up.dtype for module in after.modules.values()} == {torch.float32}
    assert len(result.reduced) == sum(module.rank > 1 for module in before.modules.values())
    errors, norms = [], []
    for name in before.params:
        delta, found = before.delta(name), after.delta(name)
        assert delta is not None
        assert found is not None
        errors.append(float((delta - found).square().sum()))
        norms.append(float(delta.square().sum()))
    assert result.relative_error == pytest.approx((sum(errors) / sum(norms)) ** 0.5, rel=1e-4)


def test_dense_matrices_become_factors_at_the_rank(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    matrix = torch.randn(12, 2, generator=random) @ torch.randn(2, 9, generator=random)
    tensors = {"denoiser.conv_in.diff_b": torch.ones(4), "denoiser.a.diff": matrix}
    save_file(tensors, tmp_path / "dense.safetensors", metadata={"lbm_lora_format": "1"})
    result = run(config(tmp_path / "dense.safetensors", tmp_path, "native", rank=2))
    assert (result.modules, result.biases, result.reduced) == (1, 1, ("a.weight",))
    assert result.relative_error < 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"save_precision": "int8"}, 'save_precision="int8" is of the native format alone, not of kohya.'),
        ({"biases": "replace"}, 'biases="replace" needs the base\'s values: base_model_path.'),
        ({"norms": "replace"}, 'norms="replace" needs the base\'s values: base_model_path.'),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        run(config(tmp_path / "none.safetensors", tmp_path, "kohya", **changes))
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("to", "name", "message"),
    [
        ("peft", "x.safetensors", "an adapter of PEFT is a folder."),
        ("kohya", "x.ckpt", "a LoRA is a .safetensors file."),
        ("comfyui", "x", "a LoRA is a .safetensors file."),
    ],
)
def test_an_output_of_the_wrong_form(tmp_path: Path, to: FormatName, name: str, message: str) -> None:
    path = tmp_path / name
    with pytest.raises(OutputError) as error:
        run(ConvertConfig(lora_path=tmp_path / "none.safetensors", to=to, save_to=path))
    assert str(error.value) == f"save_to {path}: {message}"


def test_the_input_is_not_overwritten(lora: Path) -> None:
    before = lora.read_bytes()
    with pytest.raises(OutputError, match="is an input of this command"):
        run(ConvertConfig(lora_path=lora, to="comfyui", save_to=lora))
    assert lora.read_bytes() == before


def test_a_base_must_be_the_lora_s(lbm: Lbm, lora: Path, tmp_path: Path) -> None:
    given = config(lora, tmp_path, "comfyui", base_model_path=lbm.tuned)
    with pytest.raises(WrongBaseError, match="Are base and tuned swapped"):
        run(given)
    assert not given.save_to.exists()
    assert run(dataclasses.replace(given, base_model_path=lbm.base)).modules
