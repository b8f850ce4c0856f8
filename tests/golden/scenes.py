"""Every command line, as the golden runs drive it: each twice in one folder, the second time with another value.

`{}` in a scene stands for the value that changes. Later scenes read what earlier ones wrote. Paths are relative to the
folder of the run, so two runs in two folders write the same bytes.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from lbm_lora import bundled
from nano import write_nano
from standins import TINY, delta, write_backbone, write_lbm_yaml


@dataclass(frozen=True)
class Scene:
    """A command line and the values that it is run with, one after the other.

    Attributes:
        slow: takes seconds; left out of the default tests.
        kill_at: this file's appearance ends the first run by SIGKILL; the second one goes on.
    """

    name: str
    line: str
    values: tuple[str, ...] = ("", "")
    slow: bool = False
    kill_at: str = ""


B, T = "in/base/model.safetensors", "in/tuned/model.safetensors"
PAIR = f"--base_model_path {B} --tuned_model_path {T}"
TRAIN = (
    "train --path_config in/train.yaml --save_ckpt_path out/{folder} --lora_rank 2 --lora_target_modules attn1 "
    "--save_interval 2 --max_steps {{}}"
)
KINDS = ("comfyui", "kohya", "kohya-diffusers", "diffusers", "peft", "lycoris")

NANO = (
    Scene("base", "base --config_path in/tiny/config.yaml --backbone_signature in/backbone --save_path "
          "out/base.safetensors --torch_dtype {}", ("bf16", "float --json")),
    Scene("base-ckpt", "base --config_path in/tiny/config.yaml --backbone_signature in/backbone --save_path "
          "out/exact.ckpt --tuned_model_path out/base.safetensors {}", ("", "--json")),
    Scene("extract", f"extract {PAIR} --save_to out/lora.safetensors --rank {{}}", ("2", "4 --json")),
    Scene("extract-verbose", f"extract {PAIR} --save_to out/verbose.safetensors --include attn1 ff {{}}",
          ("--verbose", "--no_dense --conv_rank 3 --verbose")),
    Scene("extract-all", f"extract {PAIR} --save_to out/all.safetensors --rank {{}} --also {' '.join(KINDS)}",
          ("2", "3 --json")),
    Scene("extract-ranks", f"extract {PAIR} --save_to out/several.safetensors --ranks {{}}", ("1 2", "2 4 --json")),
    Scene("extract-size", f"extract {PAIR} --save_to out/size.safetensors --max_size {{}}",
          ("60KB", "80KB --save_precision auto --json")),
    Scene("extract-error", f"extract {PAIR} --save_to out/error.safetensors --max_error {{}}", ("0.5", "0.3 --json")),
    Scene("extract-energy", f"extract {PAIR} --save_to out/energy.safetensors {{}}",
          ("--keep_energy 0.9", "--max_module_error 0.4 --json")),
    Scene("extract-int8", f"extract {PAIR} --save_to out/int8.safetensors --rank 2 --save_precision {{}}",
          ("int8", "float")),
    Scene("extract-base", "extract --base_model_path out/made.safetensors --tuned_model_path out/base.safetensors "
          "--save_to out/of-base.safetensors --create_base_model --backbone_signature in/backbone --config_path "
          "in/tiny/config.yaml --rank {}", ("2", "3")),
    Scene("calibrate", f"calibrate --tuned_model_path {T} --images in/images --save_to out/stat.safetensors --size 64 "
          "--probes 1 --timesteps 250 --seed {}", ("0", "1 --json")),
    Scene("extract-calibrated", f"extract {PAIR} --save_to out/calibrated.safetensors --calibration "
          "out/stat.safetensors --images in/images --max_size {}", ("40KB", "40KB 60KB --json")),
    Scene("extract-rank-calibrated", f"extract {PAIR} --save_to out/ranked.safetensors --calibration "
          "out/stat.safetensors --rank {}", ("2", "3 --no_check --json")),
    Scene("extract-output", f"extract {PAIR} --save_to out/output.safetensors --calibration out/stat.safetensors "
          "--max_output_error {}", ("0.1", "0.05 --json")),
    Scene("extract-psnr", f"extract {PAIR} --save_to out/psnr.safetensors --calibration out/stat.safetensors --images "
          "in/images --min_psnr {}", ("30", "40 --json")),
    Scene("extract-images", f"extract {PAIR} --save_to out/fitted.safetensors --calibration_images in/images "
          "--max_size {}", ("40KB", "60KB --json"), slow=True),
    Scene("validate", f"validate {PAIR} --lora_path out/lora.safetensors {{}}", ("--verbose", "--json")),
    Scene("validate-gate", f"validate {PAIR} --lora_path out/lora.safetensors --fail_above {{}}", ("0.0001", "2")),
    Scene("validate-images", f"validate {PAIR} --lora_path out/lora.safetensors --images in/images --report "
          "out/report --size 64 {}", ("--verbose", "--other_lora_path out/calibrated_40KB.safetensors --json")),
    Scene("layer-names", f"validate {PAIR} --lora_path out/lora.safetensors --layer_names out/names.txt {{}}"),
    Scene("infer", f"infer --base_model_path {B} --lora_path out/lora.safetensors --source_image in/images/0.png "
          "--output_path out/one.png --size 64 --torch_dtype float {}", ("", "--lora_scale 0.5 --json")),
    Scene("infer-folder", f"infer --base_model_path {B} --lora_path out/lora.safetensors out/all.safetensors "
          "--lora_scale 0.5 0.25 --source_image in/images --output_path out/images --size 64 --torch_dtype float {}",
          ("--compare", "--compare --save_input --mode live --json")),
    Scene("infer-tuned", f"infer --base_model_path {B} --lora_path out/lora.safetensors --tuned_model_path {T} "
          "--source_image in/images/1.png --mask in/mask.png --output_path out/masked.jpg --size 64 --compare "
          "--num_inference_steps {} --torch_dtype float", ("1", "2 --keep_detail 0.5 --match_color 0.5")),
    Scene("infer-shards", f"infer --base_model_path {B} --lora_path out/lora.safetensors --source_shards "
          "in/shards/0.tar --output_path out/shards --size 64 --torch_dtype float {}", ("", "--json")),
    Scene("fuse", f"fuse --base_model_path {B} --lora_path out/lora.safetensors --save_to out/fused.safetensors "
          "--lora_scale {}", ("1", "0.5,attn1=0 --json")),
    Scene("fuse-ckpt", f"fuse --base_model_path {B} --lora_path out/lora.safetensors out/int8.safetensors "
          "--lora_scale 0.5 -0.25 --save_to out/fused.ckpt {}", ("", "--json")),
    Scene("resize", "resize --lora_path out/lora.safetensors --save_to out/small.safetensors --rank {}",
          ("1", "2 --json")),
    Scene("resize-size", "resize --lora_path out/lora.safetensors --save_to out/sized.safetensors --max_size {}",
          ("40KB", "35KB 60KB --json")),
    Scene("resize-calibrated", "resize --lora_path out/lora.safetensors --save_to out/resized.safetensors "
          "--calibration out/stat.safetensors {}", ("--max_size 40KB", "--max_output_error 0.2 --json")),
    Scene("merge", "merge --lora_path out/lora.safetensors out/all.safetensors --lora_scale 1 0.5 --save_to "
          "out/merged.safetensors {}", ("--rank 3", "--exact --json")),
    Scene("merge-ties", "merge --lora_path out/lora.safetensors out/all.safetensors --save_to out/ties.safetensors "
          "--method {} --density 0.5", ("ties", "dare --seed 3")),
    Scene("merge-size", "merge --lora_path out/lora.safetensors out/all.safetensors --save_to out/msize.safetensors "
          "{}", ("--max_size 40KB", "--max_error 0.3 --json")),
    *(Scene(f"convert-{kind}", f"convert --lora_path out/lora.safetensors --to {kind} --save_to out/as-{kind}"
            f"{'' if kind == 'peft' else '.safetensors'} {'' if kind == 'comfyui' else '--biases drop --norms drop'} "
            "{}", ("", "--save_precision fp16 --json"))
      for kind in KINDS),
    Scene("convert-back", "convert --lora_path out/as-comfyui.safetensors --to native --save_to out/back.safetensors "
          f"--base_model_path {B} {{}}", ("", "--save_precision bf16 --json")),
    Scene("convert-packed", "convert --lora_path out/calibrated_40KB.safetensors --to diffusers --biases drop --norms "
          "drop --save_to out/pack-diffusers.safetensors {}", ("", "--rank 4")),
    Scene("layers", f"layers --model_path {B} {{}}", ("", "--patterns attn1 'mid_block.*' --rank 8 --json")),
    Scene("inspect-lora", "inspect out/lora.safetensors {}", ("", "--verbose")),
    Scene("inspect-json", "inspect out/calibrated_40KB.safetensors --json {}"),
    Scene("inspect-report", f"inspect out/lora.safetensors --base_model_path {B} --report out/look {{}}",
          ("", "--json")),
    Scene("inspect-two", "inspect out/lora.safetensors out/all.safetensors {}", ("", "--json")),
    Scene("inspect-base", "inspect out/base.safetensors {}", ("", "--json")),
    Scene("inspect-ckpt", "inspect out/exact.ckpt {}", ("", "--json")),
    Scene("inspect-statistics", "inspect out/stat.safetensors {}", ("", "--json")),
    Scene("inspect-peft", "inspect out/as-peft {}", ("", "--json")),
    Scene("data-pack", "data pack in/pairs --to out/packed {}", ("", "--overwrite --name two --json")),
    Scene("data-check", "data check out/packed/pairs-000000.tar --image_size 64 {}", ("", "--json")),
    Scene("train", TRAIN.format(folder="run"), ("2", "4 --json")),
    Scene("train-also", TRAIN.format(folder="also") + " --also comfyui --validation_folder in/pairs "
          "--validation_interval 2 --logger csv", ("2", "4")),
    Scene("train-killed", TRAIN.format(folder="killed"), ("30", "30"), kill_at="out/killed/resume.pt"),
    Scene("train-full", "train --path_config in/train.yaml --save_ckpt_path out/full --mode full --max_steps {}",
          ("1", "2")),
    Scene("train-on", "train --path_config in/train.yaml --save_ckpt_path out/on --lora_weights_path "
          "out/lora.safetensors --trainable_lora_modules attn1 --max_steps {}", ("1", "2")),
    Scene("inspect-trained", "inspect out/run/last.safetensors {}", ("", "--json")),
    Scene("infer-trained", f"infer --base_model_path {B} --lora_path out/run/last.safetensors --source_image "
          "in/images/0.png --output_path out/trained.png --size 64 --torch_dtype float {}"),
    Scene("refine", f"refine {PAIR} --lora_path out/lora.safetensors --images in/many --save_to "
          "out/refined.safetensors --size 64 --batch_size 2 --steps {}", ("2", "3 --json")),
    Scene("refine-joint", f"refine {PAIR} --lora_path out/lora.safetensors --images in/many --save_to "
          "out/joint.safetensors --size 64 --method joint --steps {}", ("1", "2 --json"), slow=True),
    Scene("push", "push out/lora.safetensors --to user/repo --save_to out/push --images out/images "
          "--base_model user/base {}",
          ("", "--license mit --json")),
    Scene("compress", "compress in/tuned --base_model_path in/base/model.safetensors --images in/images --output "
          "out/compressed --size {}", ("40KB", "60KB --also comfyui --json"), slow=True),
)  # fmt: skip
"""Everything on the nano model: random, a few seconds for all."""

WRONG = (
    Scene("no command", "{}", ("", "--version")),
    Scene("help", "--help {}", ("",)),
    Scene("unknown command", "extrat {}", ("",)),
    Scene("unknown flag", f"extract {PAIR} --save_to out/x.safetensors --rnak {{}}", ("4",)),
    Scene("no number", f"extract {PAIR} --save_to out/x.safetensors --rank {{}}", ("four", "0", "-5", "1.5")),
    Scene("no choice", "convert --lora_path out/lora.safetensors --to {} --save_to out/x.safetensors", ("comfy",)),
    Scene("missing value", f"extract {PAIR} --save_to {{}}", ("",)),
    Scene("missing flag", "fuse --base_model_path in/base/model.safetensors {}", ("",)),
    Scene("missing file", f"fuse --base_model_path {B} --lora_path out/lroa.safetensors --save_to out/x.safetensors "
          "{}", ("",)),
    Scene("two ways", f"extract {PAIR} --save_to out/x.safetensors --max_size 1MB --max_error {{}}", ("0.3",)),
    Scene("size", f"extract {PAIR} --save_to out/x.safetensors --max_size {{}}", ("many", "1KB")),
    Scene("suffix", f"extract {PAIR} --save_to out/x.{{}}", ("bin",)),
    Scene("output is input", f"fuse --base_model_path {B} --lora_path out/lora.safetensors --save_to {{}}",
          (B, "out/lora.safetensors", "in/base/../base/model.safetensors")),
    Scene("foreign file", f"extract {PAIR} --save_to {{}}", ("in/foreign.safetensors", "in/images")),
    Scene("trained file", f"extract {PAIR} --save_to {{}}", ("out/run/last.safetensors",)),
    Scene("wrong base", f"fuse --base_model_path {T} --lora_path out/lora.safetensors --save_to out/x.safetensors {{}}",
          ("", "--allow_other_base --json")),
    Scene("pattern", f"extract {PAIR} --save_to out/x.safetensors --include {{}}", ("atn1", "re:(")),
    Scene("no images", f"validate {PAIR} --lora_path out/lora.safetensors --images {{}}", ("in/none", "in/train.yaml")),
    Scene("training key", "train --path_config in/train.yaml --lerning_rate {}", ("1",)),
    Scene("training value", "train --path_config in/train.yaml --save_ckpt_path out/none --batch_size {}", ("0", "x")),
    Scene("cut file", f"fuse --base_model_path {B} --lora_path in/cut.safetensors --save_to out/x.safetensors {{}}"),
)  # fmt: skip
"""Bad usage and bad input: one line, exit code 2, nothing written."""

MINI = (
    Scene("mini-demo", "demo --output out/demo --size {}", ("300KB", "600KB --json"), slow=True),
    Scene("mini-compress", "compress in/mini/tuned --backbone_signature in/mini/backbone --images in/mini/images "
          "--output out/mini --count 2 --size {}", ("300KB", "500KB --json"), slow=True),
)  # fmt: skip
"""The main job on the bundled model."""

HELP = tuple(
    Scene(f"help {name}", f"{name} --help{{}}", ("",))
    for name in ("demo", "compress", "extract", "validate", "infer", "fuse", "resize", "convert", "train", "base",
                 "calibrate", "refine", "merge", "layers", "inspect", "doctor", "push", "data pack", "data check")
)  # fmt: skip


def all_scenes() -> Sequence[Scene]:
    """Every scene, in the order in which they run."""
    return (*NANO, *WRONG, *HELP, *MINI)


def write_inputs(folder: Path) -> None:
    """Write what the scenes read: `folder/in`."""
    inside = folder / "in"
    for name in ("base", "tuned", "images", "many", "pairs", "shards"):
        (inside / name).mkdir(parents=True)
    for name in ("base", "tuned"):
        write_nano(inside / name, torch.float32)
    path = inside / "tuned/model.safetensors"
    state = load_file(path)
    changed = {
        key: value + delta(key, tuple(value.shape)) if "denoiser" in key else value for key, value in state.items()
    }
    save_file(changed, path)
    for index in range(4):
        _image(index).save(inside / f"many/{index}.png")
        if index < 2:
            _image(index).save(inside / f"images/{index}.png")
            for role in ("source", "target"):
                _image(index).save(inside / f"pairs/{index}.{role}.png")
    _image(3).convert("L").save(inside / "mask.png")
    write_backbone(inside / "backbone", TINY)
    write_lbm_yaml(inside / "tiny", TINY)
    _write_shard(inside)
    save_file({"a": torch.ones(2)}, inside / "foreign.safetensors")
    (inside / "cut.safetensors").write_bytes(path.read_bytes()[:5000])
    (inside / "train.yaml").write_text(yaml.safe_dump(training()))
    shutil.copytree(bundled.TUNED, inside / "mini/tuned")
    shutil.copytree(bundled.TUNED.parent / "backbone", inside / "mini/backbone")
    (inside / "mini/images").mkdir()
    for image in sorted(bundled.PAIRS.glob("*.source.png"))[:4]:
        shutil.copy(image, inside / "mini/images")


def training() -> dict[str, Any]:
    """The values of a training file: steps on tiny images."""
    return {
        "train_folder": "in/pairs", "base_model_path": B, "batch_size": 1,
        "image_size": [64], "precision": "32", "base_dtype": "float", "device": "cpu", "max_epochs": 100,
        "gradient_checkpointing": False, "logger": "none", "validation_samples": 1, "num_steps": [1],
    }  # fmt: skip


def _image(seed: int, size: int = 64) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


def _write_shard(inside: Path) -> None:
    from webdataset.writer import TarWriter

    with TarWriter(str(inside / "shards/0.tar"), encoder=False, mtime=0) as tar:
        for index in range(2):
            parts = {
                f"{role}.png": (inside / f"pairs/{index}.{role}.png").read_bytes() for role in ("source", "target")
            }
            tar.write({"__key__": f"{index:03d}", **parts})
