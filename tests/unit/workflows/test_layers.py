"""The workflow `layers`: what patterns select, and how large a LoRA of it is."""

from pathlib import Path

import pytest

from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.cli.present import present
from lbm_lora.configs.extract import ExtractConfig
from lbm_lora.configs.layers import LayersConfig
from lbm_lora.errors import PatternError
from lbm_lora.report.wording import megabytes
from lbm_lora.workflows import extract
from lbm_lora.workflows.layers import run
from standins import Lbm


def test_all_layers_and_their_sizes(lbm: Lbm, tmp_path: Path) -> None:
    result = run(LayersConfig(model_path=lbm.base, rank=4, conv_rank=2))
    assert len(result.layers) == result.total
    assert result.prefix == "denoiser."
    made = extract.run(
        ExtractConfig(
            base_model_path=lbm.base,
            tuned_model_path=lbm.tuned,
            save_to=tmp_path / "l.safetensors",
            rank=4,
            conv_rank=2,
            dense=False,
        )
    )
    assert len(result.layers) == made.report.matched
    from lbm_lora.adapter import load_adapter

    modules = load_adapter(made.adapter).modules.values()
    assert result.lora_parameters == sum(module.up.numel() + module.down.numel() for module in modules)


def test_patterns_select(lbm: Lbm) -> None:
    result = run(LayersConfig(model_path=lbm.base, patterns=("attn1", "re:^conv_(in|out)$")))
    names = [layer.name for layer in result.layers]
    assert {"conv_in", "conv_out"} <= set(names)
    assert all("attn1" in name or name.startswith("conv_") for name in names)
    assert {layer.kind for layer in result.layers} == {"linear", "conv 3x3"}


def test_a_pattern_with_the_prefix_is_the_same(lbm: Lbm) -> None:
    one = run(LayersConfig(model_path=lbm.base, patterns=("denoiser.mid_block",)))
    other = run(LayersConfig(model_path=lbm.base, patterns=("mid_block",)))
    assert one.layers == other.layers


def test_a_pattern_that_matches_nothing_names_the_nearest(lbm: Lbm) -> None:
    with pytest.raises(PatternError, match=r"Nearest: .*attn1"):
        run(LayersConfig(model_path=lbm.base, patterns=("atn1",)))


def test_what_training_a_lora_takes(lbm: Lbm) -> None:
    some, more = (run(LayersConfig(model_path=lbm.base, patterns=("attn1",), rank=rank)) for rank in (2, 4))
    assert (
        some.model_bytes == more.model_bytes == 2 * sum(spec.numel for spec in open_checkpoint(lbm.base).specs.values())
    )
    assert more.lora_parameters == 2 * some.lora_parameters
    assert some.file_bytes == 2 * some.lora_parameters
    # weight, gradient and two averages of AdamW, 4 bytes each
    assert more.training_bytes - some.training_bytes == 16 * some.lora_parameters
    text = present("layers", some)
    assert f"{megabytes(some.file_bytes)} in bf16" in text
    assert f"about {some.training_bytes / 1e9:,.2f} GB" in text
