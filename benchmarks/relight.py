"""Does training work? Two runs on the mini model's training renders, measured on its held-out pairs.

    python -m benchmarks.relight --scenes DIR [--steps 1200] [--only scratch,continued]

DIR is the folder that tools/render_pairs.py rendered its scenes into. `scratch` trains a new LoRA of rank 8 and looks
how near its pictures come to the targets, beside base and tuned model. `continued` extracts the tuned model at rank 4,
trains some of its modules on, and compares the validation loss and the two files. Everything goes through the commands
`data pack`, `base`, `extract` and `train`. A run that was stopped goes on; files stay in --work.
"""

import argparse
import csv
import shutil
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml

from benchmarks import machine
from benchmarks.measure import ROOT
from benchmarks.relight_measure import as_numbers, changes, gap, open_model, quality, summed_up, validation_loss
from benchmarks.relight_pairs import KEYS, load_scenes, made_once, read_pairs, write_pairs
from benchmarks.results import write_result
from benchmarks.training_page import RESULTS, write_page
from lbm_lora import bundled
from lbm_lora.adapter import load_adapter
from lbm_lora.cli.main import main as lbm_lora
from lbm_lora.train.settings.train_config import read_train_config

TUNED = bundled.TUNED / "model.safetensors"
RANK = 8
CONTINUED_RANK = 4
CONTINUED_STEPS = 150
MODULES = ["attn1", "ff.net"]
"""Those of the extracted LoRA that go on learning."""
COMMON: dict[str, Any] = {
    **KEYS,
    "image_size": [128],
    "cache_latents": True,
    "validation_samples": 120,
    "num_steps": [1],
    "batch_size": 16,
    "max_epochs": 100_000,
    "learning_rate_scheduler": "cosine",
    "gradient_checkpointing": False,
    "precision": "32",
    "base_dtype": "float",
    "device": "cpu",
    "log_interval": 10,
    "save_interval": 50,
    "validation_interval": 1_000_000,
    "keep_last": 1,
    "logger": "csv",
}
"""Settings of both runs. Masks are for measuring: the loss is of whole pictures, as the tuned model's was."""


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    torch.set_num_threads(options.threads)
    work: Path = options.work.resolve()
    made_once(work / "shards", lambda folder: _pack(options.scenes, folder))
    made_once(work / "held_out", lambda folder: write_pairs(load_scenes(options.scenes, "held_out"), folder))
    base = made_once(work / "base", _base) / "base.safetensors"
    for name in options.only.split(","):
        numbers, settings = PROOFS[name](work, base, options.steps)
        path = write_result(
            options.results,
            name,
            {"machine": machine.machine(options.threads), "versions": machine.versions(), **numbers},
            command=f"python -m benchmarks.relight --scenes DIR --only {name} --steps {options.steps}",
            settings=settings,
            pair={"base": "the bundled backbone's exact base, bf16", "tuned": "the bundled mini model, bf16"},
            slug=machine.slug(options.threads),
        )
        print(path.name, flush=True)
    if options.results == RESULTS:
        write_page(RESULTS)
    return 0


def scratch(work: Path, base: Path, steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A new LoRA, without a look at the held-out pairs until it is done."""
    settings = COMMON | {
        "lora_rank": RANK,
        "lora_conv_rank": RANK,
        "train_biases": True,
        "train_norms": True,
        "learning_rate": 2e-3,
        "warmup_steps": steps // 20,
        "max_steps": steps,
        "ema_decay": 0.99,
    }
    run = _train(work, base, "scratch", settings)
    pairs = read_pairs(work / "held_out")
    models: dict[str, tuple[Path, Path | None]] = {
        "base": (base, None),
        "tuned": (TUNED, None),
        "LoRA": (base, run / "last.safetensors"),
    }
    found = {"source": quality(None, pairs)}
    found |= {name: quality(open_model(*files), pairs) for name, files in models.items()}
    numbers = {
        "pairs": len(pairs),
        "train_pairs": _trained_on(work),
        "lora_bytes": (run / "last.safetensors").stat().st_size,
        "step_s": step_seconds(run / "logs"),
        "summary": summed_up(found),
        "gap": gap(found["LoRA"], found["tuned"]),
    }
    return numbers, settings


def continued(work: Path, base: Path, steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """An extracted LoRA that goes on learning; `steps` is of the other run."""
    rank = str(CONTINUED_RANK)
    extracted = made_once(work / "extracted", lambda folder: _extract(base, folder, rank)) / "lora.safetensors"
    settings = COMMON | {
        "lora_weights_path": str(extracted),
        "trainable_lora_modules": MODULES,
        "learning_rate": 1e-3,
        "warmup_steps": CONTINUED_STEPS // 10,
        "max_steps": CONTINUED_STEPS,
        "ema_decay": 0.95,
    }
    run = _train(work, base, "continued", settings)
    after = run / "last.safetensors"
    config = read_train_config(work / "continued.yaml", [("validation_folder", str(work / "held_out"))])
    models: dict[str, tuple[Path, Path | None]] = {
        "base": (base, None),
        "extracted": (base, extracted),
        "continued": (base, after),
        "tuned": (TUNED, None),
    }
    numbers = {
        "rank": CONTINUED_RANK,
        "steps": CONTINUED_STEPS,
        "modules": MODULES,
        "train_pairs": _trained_on(work),
        "validation": {name: validation_loss(open_model(*files), config) for name, files in models.items()},
        "changes": as_numbers(changes(load_adapter(extracted), load_adapter(after), MODULES)),
    }
    return numbers, settings | {"lora_weights_path": extracted.name}


PROOFS: Mapping[str, Callable[[Path, Path, int], tuple[dict[str, Any], dict[str, Any]]]] = {
    "scratch": scratch,
    "continued": continued,
}


def step_seconds(logs: Path) -> float:
    """Mean wall time of a step over a whole run, parts of it that were done again counted once."""
    rows: dict[str, float] = {}
    for path in sorted(logs.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime):
        with path.open(newline="") as file:
            rows |= {row["step"]: float(row["train/seconds_per_step"]) for row in csv.DictReader(file)}
    return fmean(rows.values())


def _train(work: Path, base: Path, name: str, settings: Mapping[str, Any]) -> Path:
    """`train`; returns the folder of the run."""
    places = {
        "train_shards": [str(path) for path in sorted((work / "shards").glob("*.tar"))],
        "base_model_path": str(base),
        "cache_dir": str(work / "cache"),
        "save_ckpt_path": str(work / name),
    }
    path = work / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**places, **settings}, sort_keys=False))
    _command("train", "--path_config", str(path))
    return work / name


def _pack(scenes: Path, shards: Path) -> None:
    """Shards of the training pairs."""
    pairs = shards.with_name("train")
    shutil.rmtree(pairs, ignore_errors=True)
    write_pairs(load_scenes(scenes, "train"), pairs)
    flags = [word for key, value in KEYS.items() for word in (f"--{key}", value)]
    _command("data", "pack", str(pairs), "--to", str(shards), "--shard_mb", "50", *flags)
    shutil.rmtree(pairs)


def _base(folder: Path) -> None:
    config = str(bundled.TUNED / "config.yaml")
    _command("base", "--config_path", config, "--save_path", str(folder / "base.safetensors"))


def _extract(base: Path, folder: Path, rank: str) -> None:
    files = ["--base_model_path", str(base), "--tuned_model_path", str(TUNED)]
    _command("extract", *files, "--save_to", str(folder / "lora.safetensors"), "--rank", rank, "--conv_rank", rank)


def _command(*words: str) -> None:
    """A whole `lbm-lora` command.

    Raises:
        SystemExit: it did not end well.
    """
    code = lbm_lora(list(words))
    if code:
        raise SystemExit(f"error: lbm-lora {' '.join(words[:2])} ended with {code}")


def _trained_on(work: Path) -> int:
    """Pairs in the shards."""
    return sum(
        name.endswith(".source.png")
        for path in (work / "shards").glob("*.tar")
        for name in tarfile.open(path).getnames()
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relight", description=__doc__)
    add = parser.add_argument
    add("--scenes", type=Path, required=True, help="folder with scenes/train and scenes/held_out")
    add("--steps", type=int, default=1200, help="of the LoRA that is trained from nothing")
    add("--only", default=",".join(PROOFS), help="scratch, continued")
    add("--work", type=Path, default=ROOT / "benchmarks" / "work" / "relight", help="folder for 500 MB of files")
    add("--threads", type=int, default=2, help="of torch")
    add("--results", type=Path, default=RESULTS, help="folder of result files")
    return parser


if __name__ == "__main__":
    sys.exit(main())
