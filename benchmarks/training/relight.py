"""Train a new LoRA on the mini model's training renders, and measure it on the held-out pairs.

Its images are compared with the targets, next to those of the base and of the tuned model, which was never its teacher.
An interrupted run resumes; files stay in the work folder.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import numpy as np
import torch
import yaml
from PIL import Image

from benchmarks.command import MINI_PAIR, MINI_TUNED, arguments, lbm_lora, mini_base
from benchmarks.results import FOLDER, WORK, command_of, write_result
from lbm_lora import LBMPipeline, ScaledAdapter, fuse_module, load_adapter
from lbm_lora.imaging.metrics import psnr
from lbm_lora.imaging.tensors import mask_to_tensor, to_tensor

Scores = dict[str, np.ndarray]
"""`whole` and `inside`: PSNR in dB of the full image and inside the object's mask, one value per pair."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train on rendered pairs, and measure on others."""

    pairs: Path  # folder with train/ and held_out/, as tools/write_pairs.py writes them
    steps: int = 1200  # optimizer steps
    work: Path = WORK / "relight"  # folder for the base, the LoRA and latents, 100 MB
    threads: int = 2  # threads of torch
    results: Path = FOLDER / "training"  # folder of result files


def run(options: Options) -> Path:
    """Train, measure, and write the result."""
    torch.set_num_threads(options.threads)
    base, held_out = mini_base(options.work / "base.safetensors"), options.pairs / "held_out"
    settings = _settings(options.steps)
    lora = _train(options, base, settings)
    found = {
        "source": scores(None, held_out),
        "base": scores(_model(base), held_out),
        "tuned": scores(_model(MINI_TUNED), held_out),
        "LoRA": scores(_model(base, lora), held_out),
    }
    return write_result(
        options.results,
        "scratch",
        command=command_of("benchmarks.training relight", options),
        settings=settings,
        pair=MINI_PAIR,
        cores=options.threads,
        train_pairs=len(list((options.pairs / "train").glob("*.source.png"))),
        pairs=len(found["source"]["whole"]),
        lora_bytes=lora.stat().st_size,
        step_s=step_seconds(lora.parent / "logs"),
        summary=summed_up(found),
        gap=gap(found["LoRA"], found["tuned"]),
    )


def scores(model: LBMPipeline | None, folder: Path) -> Scores:
    """Score one step on every source in a folder of pairs; without a model, score the sources. Images have 8 bits."""
    found: list[tuple[float, float]] = []
    for path in sorted(folder.glob("*.source.png")):
        source, target, mask = (
            Image.open(path.with_name(path.name.replace(".source.", f".{role}.")))
            for role in ("source", "target", "mask")
        )
        images = to_tensor([source]) if model is None else to_tensor(cast("list[Image.Image]", model(source).images))
        wanted = to_tensor([target])[0]
        found.append((psnr(images[0], wanted), psnr(images[0], wanted, mask_to_tensor(mask))))
    return dict(zip(("whole", "inside"), np.array(found).T, strict=True))


def summed_up(found: Mapping[str, Scores]) -> dict[str, dict[str, float]]:
    """Return means over the pairs, and the share of pairs that are closer inside the mask than `source`."""
    return {
        name: {
            **{where: round(float(values.mean()), 3) for where, values in one.items()},
            "better_than_source": round(float((one["inside"] > found["source"]["inside"]).mean()), 4),
        }
        for name, one in found.items()
    }


def gap(one: Scores, other: Scores) -> dict[str, dict[str, float]]:
    """Return the mean difference between two scores over the pairs, and its standard error, in dB."""
    found: dict[str, dict[str, float]] = {}
    for where, values in one.items():
        differences = values - other[where]
        error = float(differences.std(ddof=1)) / len(differences) ** 0.5
        found[where] = {"mean": round(float(differences.mean()), 3), "standard_error": round(error, 3)}
    return found


def step_seconds(logs: Path) -> float:
    """Return the mean wall time per step over a complete run; repeated parts count once."""
    rows: dict[str, float] = {}
    for path in sorted(logs.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime):
        with path.open(newline="") as file:
            rows |= {row["step"]: float(row["train/seconds_per_step"]) for row in csv.DictReader(file)}
    return fmean(rows.values())


def _settings(steps: int) -> dict[str, Any]:
    """Return the training settings. Masks are only for measuring: the loss counts all pixels, as in the tuned model."""
    data = {"source_key": "source.png", "target_key": "target.png", "image_size": [128], "cache_latents": True}
    modules = {"lora_rank": 8, "lora_conv_rank": 8, "train_biases": True, "train_norms": True, "ema_decay": 0.99}
    rate = {"learning_rate": 2e-3, "learning_rate_scheduler": "cosine", "warmup_steps": steps // 20}
    length = {"batch_size": 16, "max_steps": steps, "max_epochs": 100_000, "gradient_checkpointing": False}
    dtypes = {"precision": "32", "base_dtype": "float", "device": "cpu"}
    files = {"log_interval": 10, "save_interval": 50, "keep_last": 1, "logger": "csv"}
    return {**data, **modules, **rate, **length, **dtypes, **files}


def _train(options: Options, base: Path, settings: Mapping[str, Any]) -> Path:
    """Train the LoRA, and return its path."""
    output, config = options.work / "scratch", options.work / "scratch.yaml"
    places = {"train_folder": options.pairs / "train", "base_model_path": base, "cache_dir": options.work / "cache"}
    files = {key: str(path) for key, path in {**places, "save_ckpt_path": output}.items()}
    config.write_text(yaml.safe_dump({**files, **settings}))
    lbm_lora(arguments("train", path_config=config))
    return output / "last.safetensors"


def _model(checkpoint: Path, lora: Path | None = None) -> LBMPipeline:
    """Load a model in fp32, with a LoRA fused into it if given."""
    model = LBMPipeline.from_checkpoint(checkpoint, torch_dtype=torch.float32)
    model.set_progress_bar_config(disable=True)
    if lora is not None:
        fuse_module(model.unet, [ScaledAdapter(load_adapter(lora))])
    return model
