"""The text of a report, word for word, and what it does with names and numbers that are out of the ordinary."""

import math
from collections.abc import Callable
from dataclasses import replace

from lbm_lora.adapter import LedgerRow, Status
from lbm_lora.report import OutputComparison, Report, WeightReport, full_text, short_text
from lbm_lora.report.outputs import summarize

FULL = """\
LoRA lora.safetensors: base.safetensors + LoRA against tuned.safetensors

Ledger           tensors   of the change   of the error
  lora                 3          97.5 %         76.7 %  linear: 2, conv: 1
  dense                1          0.10 %            0 %  1-dimensional: 1
  unchanged            1             0 %            0 %  equal in base and tuned: 1
  excluded             1          2.43 %         23.3 %  in --exclude: 1
  sum                  6

Modules
  modules found                   3
  successfully tested             3
  failed to match                 0
  success rate                    100.0 %
  Perfect matches (error < 0.001) 1 of 3
  average error                   0.00693333
  average relative error          30.7 % (mean absolute)
                                  30.7 % (Frobenius)
  bands                           1 excellent, 1 good, 1 poor, 0 noise
  ranks                           2 to 16, median 4; 1 module of 3 at full rank
  best      2.00 %  conv_in
  worst     60.0 %  up_blocks.0.out

Total relative error: 32.3 %  GOOD (5 to 50 %, minor artifacts)
  Frobenius, over all 6 deltas, those left out of the file included.
  It keeps 89.6 % of the energy (the squared norm) of the fine-tune's change.
  lora modules alone              28.7 %
  left out of the file            2.43 % of the change (squared norm), in 1 tensor
  noise floor                     2.00 %
    So much of the change is rounding of the tuned checkpoint's half precision, which no method can
    tell apart.

Blocks                           tensors   relative error   of the change   of the error
  conv_in                              2           2.00 %          9.71 %         0.04 %
  down_blocks.0                        2           30.0 %          87.5 %         75.4 %
  mid_block                            1          100.0 %          2.43 %         23.3 %
  up_blocks.0                          1           60.0 %          0.39 %         1.34 %

Worst 3 modules
     error       rank  shape          name
    60.0 %      16/16  16x16          up_blocks.0.out
    30.0 %       2/12  16x12          down_blocks.0.proj
    2.00 %        4/8  8x4x3x3        conv_in

Outputs against tuned, on equal latents: 2 images, 1 step, seed 0, fp32 on cpu
                       PSNR, dB              SSIM      denoiser error
  variant         mean    worst     mean    worst      mean     worst  worst image
  base           16.12    14.00   0.6061   0.5000    60.0 %    70.0 %  tree.jpg
  base + LoRA    40.50    40.50   0.9999   0.9999    2.00 %    4.00 %  cup.png
  The mean PSNR leaves out pictures that are equal to the reference's.

  image                         size  variant         PSNR     SSIM  PSNR in mask  SSIM in mask
  cup.png                      64x48  base           18.25   0.7123         15.00        0.6000
                                      base + LoRA    40.50   0.9999         38.00        0.9800
  tree.jpg                     64x64  base           14.00   0.5000             -             -
                                      base + LoRA    equal   1.0000             -             -

note: The VAEs differ in 3 of 248 tensors."""

SHORT = """\
LoRA lora.safetensors: base.safetensors + LoRA against tuned.safetensors
  ledger                          3 lora + 1 dense + 1 unchanged + 1 excluded = 6 tensors
  ranks                           2 to 16, median 4; 1 module of 3 at full rank
  successfully tested             3 of 3 modules found
  perfect matches (error < 0.001) 1 of 3
  average error                   0.00693333
  average relative error          30.7 %
  total relative error            32.3 %  GOOD (5 to 50 %, minor artifacts)
  left out of the file            2.43 % of the change (squared norm), in 1 tensor
  noise floor                     2.00 %
  base against tuned              PSNR 16.12 dB mean, 14.00 worst; SSIM 0.6061 mean
  base + LoRA against tuned       PSNR 40.50 dB mean, 40.50 worst; SSIM 0.9999 mean
note: The VAEs differ in 3 of 248 tensors."""


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


def test_full_text(report: Report) -> None:
    assert full_text(report) == FULL


def test_short_text(report: Report) -> None:
    assert short_text(report) == SHORT


def test_without_outputs_nothing_is_said_of_them(report: Report) -> None:
    text = full_text(replace(report, outputs=None, notes=()))
    assert text == FULL[: FULL.index("\n\nOutputs")]
    assert len(short_text(replace(report, outputs=None, notes=())).splitlines()) == 10


def test_the_number_of_worst_modules_is_chosen(report: Report) -> None:
    text = full_text(report, worst=1)
    assert "Worst module\n" in text
    assert text.count("up_blocks.0.out\n") == 2  # as the worst, and in the list of one
    assert "down_blocks.0.proj\n" not in text


def test_names_that_match_nothing_are_listed(weights: WeightReport) -> None:
    names = tuple(f"mid_block.attentions.0.transformer_blocks.{i}.nowhere" for i in range(12))
    text = full_text(Report(weights=replace(weights, failed=names, success_rate=0.2)))
    assert "  modules found                   15\n" in text
    assert "  failed to match                 12\n" in text
    assert "  success rate                    20.0 %\n" in text
    assert "  failed to match: mid_block.attentions.0.transformer_blocks.0.nowhere,\n" in text
    assert "and 4 more" in text
    assert widest(text) <= 100


def test_infinite_errors(build: Callable[..., WeightReport], row: Callable[..., LedgerRow]) -> None:
    broken = row("a.weight", Status.LORA, (4, 4), error=math.inf, rank=2)
    text = full_text(Report(weights=build(broken, row("b.bias", Status.DENSE, (4,), error=0.0))))
    assert "Total relative error: inf  NOISE (above 100 %, more noise than signal: increase the rank)\n" in text
    assert "  worst        inf  a\n" in text
    assert "  lora                 1          50.0 %              -  linear: 1\n" in text


def test_an_adapter_without_lora_modules(build: Callable[..., WeightReport], row: Callable[..., LedgerRow]) -> None:
    report = Report(weights=build(row("b.bias", Status.DENSE, (4,), error=0.0)))
    assert "  success rate                    0.0 %\n" in full_text(report)
    assert "The adapter gives back the fine-tune's change exactly.\n" in full_text(report)
    assert "Worst" not in full_text(report)
    assert "ranks" not in short_text(report)


def test_equal_pictures(report: Report, outputs: OutputComparison) -> None:
    images = outputs.images[1:]
    equal = replace(report, outputs=replace(outputs, images=images, summary=summarize(images)))
    assert "  base + LoRA    equal    equal   1.0000   1.0000       0 %       0 %\n" in full_text(equal)
    assert "PSNR infinite: equal pictures; SSIM 1.0000 mean\n" in short_text(equal)


def test_long_and_hostile_names_stay_in_their_columns(
    report: Report,
    outputs: OutputComparison,
    build: Callable[..., WeightReport],
    row: Callable[..., LedgerRow],
) -> None:
    name = "layer.\x1b[2J\n" + "very_long." * 30 + "weight"
    weights = replace(build(row(name, Status.LORA, (1280, 1280, 3, 3), error=0.2, rank=16)), adapter="a" * 300)
    image = replace(outputs.images[0], image="picture" * 30 + ".png", width=12345, height=12345)
    text = full_text(
        Report(weights=weights, outputs=replace(outputs, images=(image,), summary=summarize((image,))), notes=(name,))
    )
    assert widest(text) <= 100
    assert text.isascii()
    assert "\x1b" not in text
    assert widest(short_text(Report(weights=weights))) <= 100


def test_many_blocks_are_cut_to_those_with_the_largest_error(
    build: Callable[..., WeightReport], row: Callable[..., LedgerRow]
) -> None:
    rows = [row(f"layers.{i}.weight", Status.LORA, (4, 4), error=0.01 * i, rank=1) for i in range(40)]
    text = full_text(Report(weights=build(*rows)), worst=0)
    assert "30 of 40 blocks" in text
    assert "  layers.39 " in text
    assert "  layers.9 " not in text
