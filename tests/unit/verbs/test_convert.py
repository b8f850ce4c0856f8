"""`convert`: what is written in each format, and what is refused before anything is read."""

import dataclasses
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save_file

from lbm_lora.adapter import Adapter, load_adapter
from lbm_lora.adapter.metadata import ERRORS_KEY
from lbm_lora.choices import FormatName
from lbm_lora.errors import AdapterError, ConfigError, OutputError, WrongBaseError
from lbm_lora.verbs.convert import convert
from lbm_lora.verbs.extract import extract
from standins import Lbm

DROP: dict[str, Any] = {"biases": "drop", "norms": "drop"}


@pytest.fixture(scope="module")
def lora(lbm: Lbm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the modules at each end of the denoiser, and of two norms."""
    path = tmp_path_factory.mktemp("lora") / "l.safetensors"
    ends = ("conv_in", "time_embedding", "conv_out", "conv_norm_out", "mid_block.resnets.0.norm1")
    extract(lbm.base, lbm.tuned, save_to=path, rank=4, conv_rank=2, include=ends)
    return path


def named(folder: Path, to: FormatName) -> Path:
    return folder / (to if to == "peft" else f"{to}.safetensors")


def same(one: Adapter, other: Adapter) -> bool:
    """Whether two LoRAs have the same deltas, to the bit."""
    pairs = [(one.delta(name), other.delta(name)) for name in one.params]
    is_equal = all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs)
    return set(one.params) == set(other.params) and is_equal


@pytest.mark.parametrize("to", get_args(FormatName))
def test_each_format_leads_back_to_the_same_file(lora: Path, tmp_path: Path, to: FormatName) -> None:
    before = load_adapter(lora)
    drop = {} if to in ("native", "comfyui") else DROP
    if drop and to != "lycoris":
        with pytest.raises(AdapterError, match=r"\d+ .*biases|norms"):
            convert(lora, to, named(tmp_path, to))
        assert list(tmp_path.iterdir()) == []
    result = convert(lora, to, named(tmp_path, to), **drop)
    assert set(result.dropped) == (set(before.dense) if drop else set())
    assert result.nbytes == sum(path.stat().st_size for path in result.files)
    back = convert(result.output, "native", tmp_path / "back.safetensors")
    assert back.source == to
    after = load_adapter(back.output)
    facts = {key: value for key, value in before.metadata.facts.items() if not drop or key != ERRORS_KEY}
    assert after.metadata == dataclasses.replace(before.metadata, facts=facts)
    assert after.prefix == before.prefix
    assert same(after, before.filtered(lambda name: name not in before.dense) if drop else before)
    of_value = convert(before, to, named(tmp_path / "value", to), **drop)
    assert [path.read_bytes() for path in of_value.files] == [path.read_bytes() for path in result.files]


def test_precision_and_rank(lora: Path, tmp_path: Path) -> None:
    before = load_adapter(lora)
    result = convert(lora, "native", tmp_path / "n.safetensors", save_precision="float", rank=1)
    after = load_adapter(result.output)
    assert {(module.rank, module.up.dtype) for module in after.modules.values()} == {(1, torch.float32)}
    assert len(result.reduced) == sum(module.rank > 1 for module in before.modules.values())
    deltas = [(before.delta(name), after.delta(name)) for name in before.params]
    errors = sum(float((a - b).square().sum()) for a, b in deltas if a is not None and b is not None)
    norms = sum(float(a.square().sum()) for a, _ in deltas if a is not None)
    assert result.relative_error == pytest.approx((errors / norms) ** 0.5, rel=1e-4)


def test_dense_matrices_become_factors_at_the_rank(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    matrix = torch.randn(12, 2, generator=random) @ torch.randn(2, 9, generator=random)
    path = tmp_path / "dense.safetensors"
    save_file({"a.diff": matrix, "conv_in.diff_b": torch.ones(4)}, path, metadata={"lbm_lora_format": "1"})
    result = convert(path, "native", tmp_path / "n.safetensors", rank=2)
    assert (result.modules, result.biases, result.reduced) == (1, 1, ("a.weight",))
    assert result.relative_error < 1e-5


@pytest.mark.parametrize(
    ("to", "name", "options", "error", "message"),
    [
        ("peft", "x.safetensors", {}, OutputError, "an adapter of PEFT is a folder."),
        ("kohya", "x.ckpt", {}, OutputError, "a LoRA is a .safetensors file."),
        ("kohya", "x.safetensors", {"save_precision": "int8"}, ConfigError, 'save_precision="int8" is of the native'),
        ("peft", "x", {"norms": "replace"}, ConfigError, 'norms="replace" needs the base\'s values: base.'),
    ],
)
def test_what_cannot_be_is_refused_at_once(
    tmp_path: Path, to: FormatName, name: str, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        convert(tmp_path / "none.safetensors", to, tmp_path / name, **options)
    assert message in str(caught.value)


def test_an_input_or_another_base_is_refused(lbm: Lbm, lora: Path, tmp_path: Path) -> None:
    before = lora.read_bytes()
    with pytest.raises(OutputError, match="is an input of this command"):
        convert(lora, "comfyui", lora)
    assert lora.read_bytes() == before
    with pytest.raises(WrongBaseError, match="Are base and tuned swapped"):
        convert(lora, "comfyui", tmp_path / "c.safetensors", base=lbm.tuned)
    assert list(tmp_path.iterdir()) == []
    assert convert(lora, "comfyui", tmp_path / "c.safetensors", base=lbm.base).modules
