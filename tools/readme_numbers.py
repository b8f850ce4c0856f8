"""Fill in the numbers of the README and of docs/mini-model.md, and their picture, from the bundled mini model.

    python tools/readme_numbers.py     rewrites both pages between their markers, and docs/images/relight.png

About a minute on one core.
"""

import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from lbm_lora import (
    LBMPipeline,
    ScaledAdapter,
    bundled,
    extract,
    fuse_module,
    load_adapter,
    make_base,
    validate,
)
from lbm_lora.imaging.grids import comparison_grid
from lbm_lora.imaging.image_file import read_image
from lbm_lora.imaging.tensors import to_images, to_tensor

ROOT = Path(__file__).parents[1]
TUNED = bundled.TUNED / "model.safetensors"
RANKS = (4, 8, 16, 32, 9999)
SHOWN_RANK = 16
ROWS = 4


@dataclass(frozen=True)
class Pair:
    """A bundled held-out pair."""

    source: Image.Image
    target: Image.Image


def pairs() -> list[Pair]:
    """All bundled pairs."""
    sources = sorted(bundled.PAIRS.glob("*.source.png"))
    return [
        Pair(
            read_image(source),
            read_image(source.with_name(source.name.replace(".source.", ".target."))),
        )
        for source in sources
    ]


def outputs(pipe: LBMPipeline, found: list[Pair]) -> list[torch.Tensor]:
    """What a model makes of every source in one step, in [-1, 1]."""
    return [pipe(pair.source, output_type="pt").images[0] * 2 - 1 for pair in found]


def rank_rows(base: Path, folder: Path) -> tuple[list[str], Path]:
    """One table row per rank, and the LoRA of the shown rank."""
    rows = []
    for rank in RANKS:
        lora = folder / f"lora_{rank}.safetensors"
        extract(base, TUNED, save_to=lora, rank=rank, conv_rank=rank)
        report = validate(base, TUNED, lora, images=bundled.PAIRS / "*.source.png", num_inference_steps=1)
        assert report.outputs is not None
        scores = {entry.variant: entry for entry in report.outputs.summary}["base + LoRA"]
        error = 100 * report.weights.relative_error
        name = "full" if rank == max(RANKS) else str(rank)
        decibels = [float(value) for value in (scores.mean_psnr, scores.worst_psnr)]
        shown = " | ".join("identical" if math.isinf(value) else f"{value:.1f}" for value in decibels)
        rows.append(f"| {name} | {name} | {lora.stat().st_size / 1e6:.2f} MB | {error:.2f} % | {shown} |")
    return rows, folder / f"lora_{SHOWN_RANK}.safetensors"


def held_out_table() -> str:
    """What training measured on all held-out pairs, as `tools/train_tuned.py` wrote it."""
    results = json.loads((bundled.ROOT / "mini/results.json").read_text(encoding="utf-8"))["tuned"]
    words = {
        "check": "scenes that were looked at only once training was done",
        "held_out": "scenes that were watched during training",
    }
    rows = []
    for split, meaning in words.items():
        scores = results[f"{split}_psnr"]
        values = [scores[f"{name}_inside"] for name in ("source", "base", "tuned")]
        shown = " | ".join(f"{value:.2f}" for value in values)
        rows.append(f"| {scores['pairs']} pairs of {meaning} | {shown} | {values[2] - values[0]:+.2f} |")
    return "\n".join(
        [
            "Objects and lights that no training saw, one step, mean PSNR inside the object (dB). From pair to pair",
            "the gain varies by 4 dB, since some sources have nearly the right light already.",
            "",
            "| held-out | source | base | tuned | tuned over source |",
            "| --- | --- | --- | --- | --- |",
            *rows,
        ]
    )


def fill_in(page: Path, text: str) -> None:
    """Put a text between the markers of a page."""
    begin, end = f"<!-- numbers:begin (python tools/{Path(__file__).name}) -->\n", "<!-- numbers:end -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{page} lacks the markers {begin.strip()} and {end}")
    page.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")
    print(text)


def main() -> None:
    """Measure, write the README's part and the picture."""
    found = pairs()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base = make_base(folder / "base.ckpt", config_path=bundled.TUNED / "config.yaml").base.safetensors
        rows, lora = rank_rows(base, folder)
        model = LBMPipeline.from_checkpoint(base, torch_dtype=torch.float32)
        of_base = outputs(model, found)
        fuse_module(model.unet, [ScaledAdapter(load_adapter(lora))])
        of_lora = outputs(model, found)
        of_tuned = outputs(LBMPipeline.from_checkpoint(TUNED, torch_dtype=torch.float32), found)
    sources = [to_tensor([pair.source])[0] for pair in found]
    ranks = "\n".join(
        [
            "| rank | conv rank | file | error of the weights | PSNR to the tuned model's image, mean (dB) | worst |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            f"Plain SVD, `lbm-lora extract --rank N --conv_rank N`, on {len(found)} of its held-out pairs (objects and",
            "lights that no training saw), fp32, one step. Without `--conv_rank`, convs get half the rank. The widest",
            "matrices have 64 rows: rank 32 is nearly full, and plain SVD has little to save on a model this narrow.",
        ]
    )
    fill_in(ROOT / "README.md", ranks)
    fill_in(ROOT / "docs/mini-model.md", held_out_table())
    picture = ROOT / "docs/images/relight.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    rows_of_pictures = [
        [to_images(image[None])[0] for image in (source, base_image, lora_image, tuned_image)] + [pair.target]
        for source, base_image, lora_image, tuned_image, pair in list(
            zip(sources, of_base, of_lora, of_tuned, found, strict=True)
        )[:: max(1, len(found) // ROWS)][:ROWS]
    ]
    labels = ["source", "base", f"base + LoRA\nrank {SHOWN_RANK}", "tuned", "target"]
    comparison_grid(labels, rows_of_pictures).save(picture, optimize=True)


if __name__ == "__main__":
    main()
