"""The text of a report, word for word, and what it does with names and numbers that are out of the ordinary."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from lbm_lora.adapter import LedgerRow, Status
from lbm_lora.fidelity.outputs import LoraFile, OutputComparison
from lbm_lora.fidelity.weights import WeightReport
from lbm_lora.report import Report, full_text, short_text, wording
from lbm_lora.report.table import facts, paragraph, table, words

FULL = """\
LoRA lora.safetensors: base.safetensors + LoRA against tuned.safetensors

Images at 1 step, 2 against those of tuned: PSNR 40.50 dB mean, 40.50 worst (cup.png, off by 2.4 of
255 levels, RMS). The base alone: 16.12 dB.
Images at 2 steps, 2 against those of tuned: PSNR 40.00 dB mean, 39.00 worst (cup.png, off by 2.9 of
255 levels, RMS). The base alone: 17.00 dB.

Outputs against tuned, on equal latents: 2 images, seed 0, fp32 on cpu
  Mean and worst of the images, PSNR in dB. LPIPS by vgg. The mean PSNR leaves out images that are
  equal to the reference's.
  steps  variant       PSNR  worst    SSIM   worst   LPIPS   worst  worst image
      1  base         16.12  14.00  0.6061  0.5000  0.5000  0.6000  tree.jpg
         base + LoRA  40.50  40.50  0.9999  0.9999  0.0063  0.0125  cup.png
      2  base         17.00  15.00  0.6350  0.5500  0.4000  0.5000  tree.jpg
         base + LoRA  40.00  39.00  0.9856  0.9800  0.0100  0.0200  cup.png

  timestep  variant      denoiser error   worst  worst image
      1000  base                 60.0 %  70.0 %  tree.jpg
            base + LoRA          2.00 %  4.00 %  cup.png
       500  base                 70.0 %  80.0 %  tree.jpg
            base + LoRA          4.00 %  5.00 %  cup.png

Ledger
  status     tensors  of the change  of the error
  lora             3         97.5 %        76.7 %  linear: 2, conv: 1
  dense            1         0.10 %           0 %  1-dimensional: 1
  unchanged        1            0 %           0 %  equal in base and tuned: 1
  excluded         1         2.43 %        23.3 %  in --exclude: 1
  sum              6

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
  best   2.00 %  conv_in
  worst  60.0 %  up_blocks.0.out

Total relative error of the weights: 32.3 %  GOOD (5 to 50 %, minor artifacts)
  The images above are the measure. The error of the weights counts every change alike, whether the
  image depends on it or not.
  Frobenius, over all 6 deltas, those left out of the file included.
  It keeps 89.6 % of the energy (the squared norm) of the fine-tune's change.
  lora modules alone              28.7 %
  left out of the file            2.43 % of the change (squared norm), in 1 tensor
  noise floor                     2.00 %
    So much of the change is rounding of the tuned checkpoint's half precision, which no method can
    tell apart.

Blocks
  block          tensors  relative error  of the change  of the error
  conv_in              2          2.00 %         9.71 %        0.04 %
  down_blocks.0        2          30.0 %         87.5 %        75.4 %
  mid_block            1         100.0 %         2.43 %        23.3 %
  up_blocks.0          1          60.0 %         0.39 %        1.34 %

Worst 3 modules
   error   rank  shape    name
  60.0 %  16/16  16x16    up_blocks.0.out
  30.0 %   2/12  16x12    down_blocks.0.proj
  2.00 %    4/8  8x4x3x3  conv_in

Each image, lowest PSNR first
  image      size  variant      steps   PSNR    SSIM    LPIPS  mask PSNR  mask SSIM
  cup.png   64x48  base             1  18.25  0.7123   0.4000      15.00     0.6000
                                    2  19.00  0.7200   0.3000      16.00     0.6100
                   base + LoRA      1  40.50  0.9999   0.0125      38.00     0.9800
                                    2  39.00  0.9800   0.0200      37.00     0.9700
  tree.jpg  64x64  base             1  14.00  0.5000   0.6000          -          -
                                    2  15.00  0.5500   0.5000          -          -
                   base + LoRA      1  equal  1.0000        0          -          -
                                    2  41.00  0.9912  2.0e-05          -          -

  image     denoiser error at    1000     500
  cup.png   base               50.0 %  60.0 %
            base + LoRA        4.00 %  5.00 %
  tree.jpg  base               70.0 %  80.0 %
            base + LoRA           0 %  3.00 %

note: The VAEs differ in 3 of 248 tensors."""


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


def test_full_text(report: Report) -> None:
    assert full_text(report) == FULL


def test_of_a_lora_that_was_made_for_the_output_the_weights_are_not_the_measure(
    report: Report, weights: WeightReport
) -> None:
    calibrated = replace(weights, made_for_output=True)
    alone = full_text(Report(weights=calibrated))
    assert "Total relative error of the weights: 32.3 %  not the measure of this LoRA\n" in alone
    assert "GOOD" not in alone
    assert (
        "This LoRA was made for the denoiser's output: it spends its bytes where the output depends on them, so the "
        "error of the weights says little about it. To measure its output: lbm-lora validate with --images FOLDER."
    ) in " ".join(alone.split())
    assert "32.3 %  not the measure of this LoRA\n" in short_text(Report(weights=calibrated))
    measured = full_text(replace(report, weights=calibrated))
    assert "GOOD" not in measured
    assert measured.index("Images at 1 step") < measured.index("Total relative error of the weights: 32.3 %")
    assert "lbm-lora validate" not in measured


def test_names_that_match_nothing_are_listed(weights: WeightReport) -> None:
    names = tuple(f"mid_block.attentions.0.transformer_blocks.{i}.nowhere" for i in range(12))
    text = full_text(Report(weights=replace(weights, failed=names, success_rate=0.2)))
    assert "  modules found                   15\n" in text
    assert "  failed to match                 12\n" in text
    assert "  success rate                    20.0 %\n" in text
    assert "  failed to match: mid_block.attentions.0.transformer_blocks.0.nowhere,\n" in text
    assert "and 4 more" in text
    assert widest(text) <= 100


def test_equal_images(
    report: Report, outputs: OutputComparison, build_outputs: Callable[..., OutputComparison]
) -> None:
    tree = next(image for image in outputs.images if image.image == "tree.jpg")
    first = replace(tree, scores=tuple(replace(v, images=v.images[:1]) for v in tree.scores))
    equal = replace(report, outputs=build_outputs(first))
    assert "base + LoRA  equal  equal  1.0000  1.0000       0       0\n" in full_text(equal)
    assert "base + LoRA             0 %     0 %\n" in full_text(equal)
    assert "PSNR infinite: equal to tuned; SSIM 1.0000 mean\n" in short_text(equal)


def test_the_worst_images_are_shown_where_there_are_many(
    report: Report, outputs: OutputComparison, build_outputs: Callable[..., OutputComparison]
) -> None:
    cup = outputs.images[1]
    images = []
    for index in range(40):
        base, lora = cup.scores
        decoded = tuple(replace(score, psnr=80.0 - index) for score in lora.images)
        images.append(replace(cup, image=f"{index:02d}.png", scores=(base, replace(lora, images=decoded))))
    text = full_text(replace(report, outputs=build_outputs(*images)))
    assert "12 of 40 images (report.json has all), lowest PSNR first\n" in text
    assert text.count("39.png  64x48") == 1
    assert text.index("39.png  64x48") < text.index("38.png  64x48") < text.index("28.png  64x48")
    assert "27.png" not in text


def test_long_and_hostile_names_stay_in_their_columns(
    outputs: OutputComparison,
    build_outputs: Callable[..., OutputComparison],
    build: Callable[..., WeightReport],
    row: Callable[..., LedgerRow],
) -> None:
    name = "layer.\x1b[2J\n" + "very_long." * 30 + "weight"
    weights = replace(build(row(name, Status.LORA, (1280, 1280, 3, 3), error=0.2, rank=16)), adapter="a" * 300)
    scores = tuple(replace(v, variant=f"{name} {i}") for i, v in enumerate(outputs.images[1].scores))
    image = replace(outputs.images[1], image="image" * 30 + "\x1b.png", width=12345, height=12345, scores=scores)
    loras = tuple(LoraFile(variant=v.variant, file=name, nbytes=10**11, method=name) for v in scores)
    text = full_text(Report(weights=weights, outputs=build_outputs(image, loras=loras), notes=(name,)))
    assert widest(text) <= 100
    assert text.isascii()
    assert "\x1b" not in text
    assert widest(short_text(Report(weights=weights))) <= 100


def test_names_cannot_steer_a_terminal_and_are_no_markup() -> None:
    (line,) = table([words(), words()], [("a\x1b[31m\n\t", "[bold]b[/bold] :smile: \u202e")])
    assert line == r"  a\x1b[31m\n\t  [bold]b[/bold] :smile: \u202e"
    assert paragraph("a\x1bb") == [r"  a\x1bb"]
    assert facts([("[red]\r", "\x07")]) == [f"  {'[red]' + chr(92) + 'r':<32}{chr(92)}x07"]


NOISE = "NOISE (above 100 %, more noise than signal: increase the rank, or is it a LoRA of another model?)"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 %"),
        (1.2e-6, "1.2e-04 %"),
        (0.0038, "0.38 %"),
        (0.09994, "9.99 %"),
        (0.09996, "10.0 %"),
        (0.12345, "12.3 %"),
        (1.0, "100.0 %"),
        (2496.0, "249,600 %"),
        (math.inf, "inf"),
        (math.nan, "-"),
    ],
)
def test_percent(value: float, text: str) -> None:
    assert wording.percent(value) == text


def test_image_scores() -> None:
    assert [wording.decibel(value) for value in (41.017, math.inf, None)] == ["41.02", "equal", "-"]
    assert [wording.similarity(value) for value in (0.999999, 1.0, math.nan, None)] == ["0.9999", "1.0000", "nan", "-"]


@pytest.mark.parametrize(
    ("error", "verdict", "meaning"),
    [
        (0.0, "EXCELLENT (below 5 %)", "The adapter reproduces the fine-tune's change exactly."),
        (0.003, "EXCELLENT (below 5 %)", "It keeps more than 99.99 % of the energy"),
        (0.05, "GOOD (5 to 50 %, minor artifacts)", "It keeps 99.75 % of the energy"),
        (0.6, "POOR (50 to 100 %, noticeable degradation)", "It keeps 64.0 % of the energy"),
        (1.2, NOISE, "it holds more noise than signal."),
        (math.inf, NOISE, "values that are not finite"),
    ],
)
def test_verdicts(error: float, verdict: str, meaning: str) -> None:
    assert wording.weights_verdict(error, made_for_output=False) == verdict
    assert meaning in wording.error_meaning(error)
