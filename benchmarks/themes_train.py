"""Training and refinement of a LoRA on the full-size denoiser: time per optimizer step, and memory."""

import shutil
from pathlib import Path
from typing import Any

import yaml

from benchmarks.bench import CONV_RANK, RANK, REDUCED, Bench
from lbm_lora.bundled import PAIRS, PHOTOS

STEPS = 3
REFINE_STEPS = 2


def train(bench: Bench) -> dict[str, Any]:
    """A few optimizer steps of a rank 32/16 LoRA on all modules, bf16 base, a batch of one, checkpointed."""
    size = 256 if bench.options.scale >= REDUCED else 64
    run = bench.path("training")
    shutil.rmtree(run, ignore_errors=True)
    settings = {
        "train_folder": str(_pairs(bench.path("pairs"))),
        "source_key": "source.png",
        "target_key": "target.png",
        "image_size": [size],
        "base_model_path": str(bench.pair.base),
        "lora_rank": RANK,
        "lora_conv_rank": CONV_RANK,
        "batch_size": 1,
        "max_steps": STEPS,
        "log_interval": 1,
        "save_interval": STEPS,
        "logger": "none",
        "device": bench.options.device,
        "save_ckpt_path": str(run),
    }
    config = bench.path("training.yaml")
    config.write_text(yaml.safe_dump(settings))
    job = bench.command("train", {"path_config": config}, inputs=(bench.pair.base,))
    runs = bench.side_by_side({"train": job}, repeats=1)
    found = runs["train"]["runs"][0]["result"]
    shutil.rmtree(run, ignore_errors=True)
    return {
        "runs": runs,
        "size": size,
        "steps": found["step"],
        "step_s": found["seconds"] / found["step"],
        "parameters": found["learning"],
    }


def refine(bench: Bench) -> dict[str, Any]:
    """A few optimizer steps of refine on a plain rank 32/16 LoRA: one picture to learn from, one to measure on."""
    size = 256 if bench.options.scale >= REDUCED else 64
    lora, refined = bench.adapter, bench.path("refined.safetensors")
    learnt, held = sorted(PHOTOS.glob("*.jpg"))[:2]
    flags = {
        "base_model_path": bench.pair.base,
        "tuned_model_path": bench.pair.tuned,
        "lora_path": lora,
        "images": learnt,
        "held_images": held,
        "save_to": refined,
        "size": size,
        "timesteps": 1000,
        "steps": REFINE_STEPS,
        "batch_size": 1,
        "torch_dtype": "bf16",
        "device": bench.options.device,
    }
    job = bench.command("refine", flags, inputs=(*bench.both, lora), outputs=(refined,), more=["--no_mirror"])
    runs = bench.side_by_side({"refine": job}, repeats=1)
    found = runs["refine"]["runs"][0]["result"]
    bench.drop(refined)
    return {"runs": runs, "size": size, "steps": REFINE_STEPS, "before": found["before"], "after": found["after"]}


def _pairs(folder: Path) -> Path:
    """A few of the bundled pairs."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(PAIRS.glob("*.source.png"))[:STEPS]:
        for name in (source.name, source.name.replace(".source.", ".target.")):
            shutil.copyfile(PAIRS / name, folder / name)
    return folder
