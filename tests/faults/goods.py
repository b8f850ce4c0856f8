"""Inputs of every kind in which nothing is wrong: what the faults are put into."""

import io
import json
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from faults.harness import Worker
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from webdataset.writer import TarWriter

from lbm_lora.adapter import load_adapter, save_adapter
from nano import write_nano
from smallnet import small_state
from standins import TINY, delta, write_backbone, write_lbm_yaml

FOREIGN = ("comfyui", "kohya", "kohya-diffusers", "diffusers", "peft", "lycoris")


@dataclass(frozen=True)
class Goods:
    """Paths of good inputs. Small ones are of a network that is no LBM; the others of the nano model of the tests."""

    folder: Path

    def __truediv__(self, name: str) -> Path:
        return self.folder / name

    def text(self, name: str) -> str:
        return str(self.folder / name)


def image(seed: int, size: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def png(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def write_goods(folder: Path, worker: Worker) -> Goods:
    """Write them all."""
    goods = Goods(folder)
    _small(goods, worker)
    _nano(goods, worker)
    _data(goods)
    return goods


def training(goods: Goods, run: Path) -> dict[str, Any]:
    """The values of a training file: one step on tiny images."""
    return {
        "train_folder": goods.text("pairs"), "base_model_path": goods.text("lbm/base/model.safetensors"),
        "lora_rank": 2, "lora_target_modules": ["attn1"], "batch_size": 1, "image_size": [64], "precision": "32",
        "base_dtype": "float", "device": "cpu", "gradient_checkpointing": False, "save_ckpt_path": str(run),
        "max_steps": 1, "max_epochs": 1, "logger": "none", "validation_samples": 1, "num_steps": [1],
    }  # fmt: skip


def _run(worker: Worker, *argv: object) -> None:
    outcome = worker.run([str(word) for word in argv], 300)
    assert outcome.code == 0, outcome


def _small(goods: Goods, worker: Worker) -> None:
    folder = goods / "small"
    folder.mkdir(parents=True)
    states: dict[str, Mapping[str, Tensor]] = {"base": small_state(1), "tuned": small_state(2)}
    for name, state in states.items():
        save_file(dict(state), folder / f"{name}.safetensors")
        torch.save({"model_state_dict": dict(state), "config": {"a": 1}}, folder / f"{name}-torch.ckpt")
        shards = folder / f"{name}-shards"
        shards.mkdir()
        keys = list(state)
        halves = {"model-00001-of-00002.safetensors": keys[::2], "model-00002-of-00002.safetensors": keys[1::2]}
        for file, part in halves.items():
            save_file({key: state[key] for key in part}, shards / file)
        weight_map = {key: file for file, part in halves.items() for key in part}
        index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": weight_map}
        (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    pair = ("--base_model_path", folder / "base.safetensors", "--tuned_model_path", folder / "tuned.safetensors")
    _run(worker, "extract", *pair, "--save_to", folder / "lora.safetensors", "--rank", 2)
    _run(worker, "extract", *pair, "--save_to", folder / "int8.safetensors", "--rank", 2, "--save_precision", "int8")
    _run(
        worker, "extract", *pair, "--save_to", folder / "packed.safetensors", "--max_size", "4KB", "--save_precision",
        "auto",
    )  # fmt: skip
    packed = load_file(folder / "packed.safetensors")["lbm_lora.index"]
    (folder / "packed-index.json").write_bytes(zlib.decompress(packed.numpy().tobytes()))


def _nano(goods: Goods, worker: Worker) -> None:
    folder = goods / "lbm"
    for name in ("base", "tuned"):
        (folder / name).mkdir(parents=True)
        write_nano(folder / name, torch.float32)
    path = folder / "tuned/model.safetensors"
    state = load_file(path)
    save_file(
        {key: value + delta(key, tuple(value.shape)) if "denoiser" in key else value for key, value in state.items()},
        path,
    )
    (goods / "images").mkdir()
    for index in range(2):
        image(index).save(goods / f"images/{index}.png")
    base, tuned, lora = folder / "base/model.safetensors", path, folder / "lora.safetensors"
    pair = ("--base_model_path", base, "--tuned_model_path", tuned)
    _run(worker, "extract", *pair, "--save_to", lora, "--rank", 2, "--include", "attn1", "--no_dense")
    _run(
        worker, "calibrate", "--tuned_model_path", tuned, "--images", goods / "images", "--save_to",
        folder / "statistics.safetensors", "--size", 64, "--probes", 1, "--timesteps", 250,
    )  # fmt: skip
    for name in FOREIGN:
        target = folder / (name if name == "peft" else f"{name}.safetensors")
        save_adapter(load_adapter(lora), target, format=name)


def _data(goods: Goods) -> None:
    for name in ("pairs", "shards"):
        (goods / name).mkdir()
    for index in range(2):
        for role in ("source", "target"):
            image(index).save(goods / f"pairs/{index}.{role}.png")
    image(3).convert("L").save(goods / "mask.png")
    with TarWriter(goods.text("shards/0.tar"), encoder=False, mtime=0) as tar:
        for index in range(2):
            parts = {f"{role}.jpg": png(image(index), "JPEG") for role in ("source", "target")}
            tar.write({"__key__": f"{index:03d}", **parts})
    write_backbone(goods / "backbone", TINY)
    write_lbm_yaml(goods / "tiny", TINY)
    (goods / "train.yaml").write_text(yaml.safe_dump(training(goods, Path("run"))))
    shutil.copy(goods / "lbm/base/config.yaml", goods / "config.yaml")
