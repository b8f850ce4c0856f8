"""What a user reads of a base, a fused checkpoint and a list of layers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lbm_lora.cli.present import present
from lbm_lora.model.base import BaseFiles, BaseItem
from lbm_lora.model.baseline import BaselineReport, TensorDistance
from lbm_lora.model.config import LBMConfig
from lbm_lora.naming import ParamName
from lbm_lora.workflows.base import BaseResult
from lbm_lora.workflows.fuse import FuseResult
from lbm_lora.workflows.layers import Layer, LayersResult

File = Callable[[str, int], Path]

BASELINE = """\
Base against the tuned model
  This can be the base that it was tuned from: its matrices moved by 5.00% of their norm (median).
  Matched denoiser keys           2/2
  Average difference              0.00150000  GOOD (documented band)
  Maximum difference              0.00300000
  unchanged                       50.0 % of the elements; 1 entire tensor
  noise floor                     1.60 % of the change is rounding of the tuned file"""

WRITTEN = """\
wrote base.safetensors (0.20 MB)
wrote base.ckpt (0.21 MB)
wrote base_ledger.json (1.0 kB)"""


@pytest.fixture
def base(file: File, base_ledger: tuple[BaseItem, ...]) -> BaseResult:
    written = BaseFiles(
        safetensors=file("base.safetensors", 200_000),
        ckpt=file("base.ckpt", 210_000),
        ledger=base_ledger,
        config=LBMConfig(),
        dtype=torch.bfloat16,
        notes=("The VAE is SDXL's.",),
    )
    return BaseResult(base=written, baseline=None, ledger_file=file("base_ledger.json", 1_000))


def distance(name: str, *, mean: float, unchanged: float, relative: float) -> TensorDistance:
    return TensorDistance(
        name=ParamName(name),
        shape=(8, 8),
        mean_abs=mean,
        max_abs=mean,
        unchanged=unchanged,
        relative=relative,
        cosine=1.0,
        noise_floor=0.016,
    )


def test_a_base(base: BaseResult, base_text: str) -> None:
    assert present("base", base) == f"{base_text}\n\nThe VAE is SDXL's.\n\n{WRITTEN}"


def test_a_base_against_a_tuned_model(base: BaseResult, base_text: str) -> None:
    tensors = (
        distance("a.weight", mean=0.003, unchanged=0.0, relative=0.1),
        distance("b.weight", mean=0.0, unchanged=1.0, relative=0.0),
    )
    measured = replace(base, baseline=BaselineReport(tensors=tensors, unmatched=(), noise_floor=0.016))
    assert present("base", measured) == f"{base_text}\n\n{BASELINE}\n\nThe VAE is SDXL's.\n\n{WRITTEN}"


def test_a_band_that_sounds_worse_than_the_verdict_is_explained(base: BaseResult) -> None:
    tensors = (distance("a.weight", mean=0.03, unchanged=0.0, relative=0.1),)
    measured = replace(base, baseline=BaselineReport(tensors=tensors, unmatched=(), noise_floor=0.016))
    text = present("base", measured)
    assert "  Average difference              0.03000000  WARNING (documented band)\n" in text
    assert "  The documented bands are absolute values made for SDXL: WARNING says that" in text


def test_the_tensors_of_a_base_with_verbose(base: BaseResult, base_text: str) -> None:
    first, *_, last = present("base", base, verbose=True).partition(f"\n\n{base_text}")[0].splitlines()
    assert first == "  copied   denoiser.a.weight (3,) -> (2,): same shape"
    assert last == (
        "  dropped  denoiser.add_embedding.linear_1.bias (3,) -> (2,): LBM has no added text and time embedding"
    )


def test_many_reasons_are_cut(base: BaseResult) -> None:
    one = base.base.ledger[0]
    items = tuple(replace(one, action="cropped", reason=f"reason {i}\x1b") for i in range(7))  # pyright: ignore[reportArgumentType]
    text = present("base", replace(base, base=replace(base.base, ledger=items)))
    assert r"  cropped             7      0    7  1 reason 0\x1b, 1 reason 1\x1b, 1 reason 2\x1b," in text
    assert "and 3 more reasons\n" in text


def test_a_fused_checkpoint(file: File) -> None:
    result = FuseResult(output=file("fused.ckpt", 2_500), nbytes=2_500, changed=1_676, tensors=1_925, adapters=())
    assert present("fuse", result) == (
        "Fused: 1,676 of 1,925 tensors changed, the others copied byte for byte.\nwrote fused.ckpt (2.5 kB)"
    )


def test_layers() -> None:
    name = "down_blocks.2.attentions.0.transformer_blocks.10.attn1.processor.to_out_with_a_long_name.0"
    result = LayersResult(
        prefix="denoiser.",
        layers=(
            Layer(
                name="conv_in", kind="conv 3x3", shape=(320, 4, 3, 3), rank=16, parameters=11_520, lora_parameters=5_696
            ),
            Layer(name=name, kind="linear", shape=(1280, 1280), rank=32, parameters=1_638_400, lora_parameters=82_560),
        ),
        total=792,
        parameters=1_649_920,
        lora_parameters=88_256,
        model_bytes=5_135_000_000,
    )
    assert present("layers", result) == (
        f"  {'layer':<90}  kind          shape  rank\n"
        f"  {'conv_in':<90}  conv 3x3  320x4x3x3    16\n"
        f"  {name}  linear    1280x1280    32\n"
        "\n"
        "2 of 792 layers, 1,649,920 parameters; a LoRA of them: 88,256 parameters, 0.18 MB in bf16\n"
        "Training it takes about 5.14 GB (the model in bf16 5.13 GB, the rest for the trainable parameters "
        "and AdamW), plus activations, which grow with image size and batch_size."
    )
