"""Commands that write, for kills and failing disks: each writes below one folder, the same bytes every time."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from faults.goods import Goods
from faults.harness import Worker, contents

MOST_SECONDS = 600
"""A command that hangs is ended after that; on a machine with much other work the slowest takes minutes."""


@dataclass(frozen=True)
class Writing:
    """A command, by name.

    Attributes:
        words: the command line that writes below a folder.
        is_new: whether it needs a folder without its results.
        resumes: whether what a killed run leaves belongs to it: a rerun resumes from there.
    """

    name: str
    words: Callable[[Path], list[str]]
    is_new: bool = False
    resumes: bool = False


def writing_commands(goods: Goods) -> list[Writing]:
    small = [goods.text(f"small/{side}.safetensors") for side in ("base", "tuned")]
    lbm = [goods.text(f"lbm/{side}/model.safetensors") for side in ("base", "tuned")]
    lora, pair = goods.text("small/lora.safetensors"), ["--base_model_path", small[0], "--tuned_model_path", small[1]]
    images, one, lbm_lora = goods.text("images"), goods.text("images/0.png"), goods.text("lbm/lora.safetensors")
    lbm_pair = ["--base_model_path", lbm[0], "--tuned_model_path", lbm[1], "--lora_path", lbm_lora]
    cpu = ["--size", "64", "--device", "cpu"]
    return [
        Writing("extract", lambda out: ["extract", *pair, "--save_to", f"{out}/x.safetensors", "--rank", "2"]),
        Writing("extract --max_size", lambda out: ["extract", *pair, "--save_to", f"{out}/x.safetensors", "--max_size",
                                                   "4KB", "--save_precision", "auto", "--also", "comfyui"]),
        Writing("fuse", lambda out: ["fuse", "--base_model_path", small[0], "--lora_path", lora, "--save_to",
                                     f"{out}/x.safetensors"]),
        Writing("fuse .ckpt", lambda out: ["fuse", "--base_model_path", small[0], "--lora_path", lora, "--save_to",
                                           f"{out}/x.ckpt"]),
        Writing("resize", lambda out: ["resize", "--lora_path", lora, "--rank", "1", "--save_to",
                                       f"{out}/x.safetensors"]),
        Writing("convert", lambda out: ["convert", "--lora_path", lbm_lora, "--to", "comfyui", "--save_to",
                                        f"{out}/x.safetensors"]),
        Writing("convert --to peft", lambda out: ["convert", "--lora_path", lbm_lora, "--to", "peft", "--save_to",
                                                  f"{out}/x"]),
        Writing("refine", lambda out: ["refine", *lbm_pair, "--images", images, "--steps", "2", "--batch_size", "1",
                                       "--timesteps", "250", "--save_to", f"{out}/x.safetensors", *cpu], resumes=True),
        Writing("validate --report", lambda out: ["validate", *lbm_pair, "--images", one, "--report",
                                                  f"{out}/report", *cpu]),
        Writing("push --save_to", lambda out: ["push", lbm_lora, "--to", "a/b", "--base_model", "a/base", "--save_to",
                                               f"{out}/repository"]),
        Writing("merge", lambda out: ["merge", "--lora_path", lora, lora, "--save_to", f"{out}/x.safetensors"]),
        Writing("base", lambda out: ["base", "--config_path", goods.text("tiny/config.yaml"), "--backbone_signature",
                                     goods.text("backbone"), "--save_path", f"{out}/x.safetensors"]),
        Writing("calibrate", lambda out: ["calibrate", "--tuned_model_path", lbm[1], "--images", one, "--probes",
                                          "1", "--timesteps", "250", "--save_to", f"{out}/x.safetensors", *cpu],
                resumes=True),
        Writing("infer", lambda out: ["infer", "--base_model_path", lbm[0], "--source_image", images, "--output_path",
                                      f"{out}/images", "--compare", *cpu]),
        Writing("infer --source_shards", lambda out: ["infer", "--base_model_path", lbm[0], "--source_shards",
                                                      goods.text("shards/0.tar"), "--output_path", f"{out}/shards",
                                                      *cpu], resumes=True),
        Writing("data pack", lambda out: ["data", "pack", goods.text("pairs"), "--to", f"{out}/packed", "--source_key",
                                          "source.png", "--target_key", "target.png"], is_new=True),
        Writing("inspect --report", lambda out: ["inspect", lora, "--report", f"{out}/report"]),
        Writing("train", lambda out: ["train", "--path_config", goods.text("train.yaml"), "--save_ckpt_path",
                                      f"{out}/run"], resumes=True),
    ]  # fmt: skip


NAMES = [writing.name for writing in writing_commands(Goods(Path("none")))]


def writing_named(name: str, goods: Goods) -> Writing:
    return next(writing for writing in writing_commands(goods) if writing.name == name)


def start(worker: Worker, writing: Writing, folder: Path, log: Path, **more: object) -> int:
    """Start the command in a fork; returns its process id."""
    request = {"argv": writing.words(folder), "fork": True, "log": str(log), **more}
    return worker.ask(request, MOST_SECONDS)["pid"]


def finish(worker: Worker, pid: int) -> int:
    """Wait for a fork; returns its exit code, negative for the signal that ended it."""
    return worker.ask({"wait": pid}, MOST_SECONDS)["code"]


def unbroken(worker: Worker, writing: Writing, folder: Path, log: Path, **more: object) -> dict[str, str]:
    """Run the command without a fault in a folder; returns what is in it."""
    folder.mkdir(exist_ok=True)
    code = finish(worker, start(worker, writing, folder, log, **more))
    assert code == 0, (writing.name, code, log.read_text())
    return contents(folder)


def refilled(folder: Path, before: Path | None) -> Path:
    """An empty folder, or a copy of one with earlier results."""
    shutil.rmtree(folder, ignore_errors=True)
    if before is None:
        folder.mkdir()
    else:
        shutil.copytree(before, folder)
    return folder
