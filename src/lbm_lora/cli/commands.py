"""The commands: what a user types, the config and the workflow behind it, and examples of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from lbm_lora.verbs import VERBS, verb_named
from lbm_lora.verbs.verb import Verb


@dataclass(frozen=True)
class Command:
    """A verb of the command line.

    Attributes:
        module: name of its module in `lbm_lora.workflows` and `lbm_lora.configs`.
        config: name of its config class.
        what: its effect, for `lbm-lora --help`.
        group: its heading there.
        examples: command lines for its help; tests parse them.
    """

    module: str
    config: str
    what: str
    group: str = "more"
    examples: tuple[str, ...] = ()

    def config_class(self) -> Any:
        """The class of its config, which is loaded without the libraries of the work."""
        return getattr(import_module(f"lbm_lora.configs.{self.module}"), self.config)

    @property
    def summary(self) -> str:
        """The first paragraph of the docstring of its config."""
        return (self.config_class().__doc__ or "").partition("\n\n")[0]

    def workflow(self) -> Any:
        """The module that does the work."""
        return import_module(f"lbm_lora.workflows.{self.module}")


START, EVERYDAY, MORE = "start here", "everyday", "more"
GROUPS = (START, EVERYDAY, MORE)

_PAIR = "--base_model_path base.safetensors --tuned_model_path tuned.safetensors"

COMMANDS: dict[str, Command] = {
    "demo": Command(
        "demo",
        "DemoConfig",
        "compress the bundled mini model, and relight an image",
        START,
        ("lbm-lora demo", "lbm-lora demo --output my_demo --size 1MB"),
    ),
    "compress": Command(
        "compress",
        "CompressConfig",
        "make a small LoRA of a model in one step, and measure it",
        START,
        (
            "lbm-lora compress relighting --size 50MB --images photos",
            "lbm-lora compress tuned.safetensors --base_model_path base.safetensors --size 20MB --also comfyui",
        ),
    ),
    "extract": Command(
        "extract",
        "ExtractConfig",
        "extract a LoRA from a fine-tuned checkpoint",
        EVERYDAY,
        (
            f"lbm-lora extract {_PAIR} --save_to lora.safetensors",
            f"lbm-lora extract {_PAIR} --save_to lora.safetensors --max_size 200MB --calibration_images photos",
        ),
    ),
    "validate": Command(
        "validate",
        "ValidateConfig",
        "measure how well a LoRA reproduces the tuned checkpoint",
        EVERYDAY,
        (
            f"lbm-lora validate {_PAIR} --lora_path lora.safetensors",
            f"lbm-lora validate {_PAIR} --lora_path lora.safetensors --images photos --fail_below_psnr 40",
        ),
    ),
    "infer": Command(
        "infer",
        "InferConfig",
        "translate images with a checkpoint and LoRAs",
        EVERYDAY,
        (
            "lbm-lora infer --base_model_path base.safetensors --lora_path lora.safetensors --source_image photo.jpg "
            "--output_path relit.png",
            "lbm-lora infer --base_model_path base.safetensors --lora_path a.safetensors b.safetensors "
            "--lora_scale 0.8 0.3 --source_image photos --output_path relit --compare",
        ),
    ),
    "fuse": Command(
        "fuse",
        "FuseConfig",
        "add LoRAs to a checkpoint's weights",
        EVERYDAY,
        (
            "lbm-lora fuse --base_model_path base.safetensors --lora_path lora.safetensors --save_to fused.safetensors",
            "lbm-lora fuse --base_model_path base.safetensors --lora_path a.safetensors b.safetensors --lora_scale "
            "1 0.5 --save_to fused.ckpt",
        ),
    ),
    "resize": Command(
        "resize",
        "ResizeConfig",
        "give a LoRA other ranks, or make it fit a file size",
        EVERYDAY,
        (
            "lbm-lora resize --lora_path lora.safetensors --rank 16 --save_to small.safetensors",
            "lbm-lora resize --lora_path lora.safetensors --max_size 50MB 20MB 8MB --calibration "
            "statistics.safetensors --save_to small.safetensors",
        ),
    ),
    "convert": Command(
        "convert",
        "ConvertConfig",
        "write a LoRA for ComfyUI, sd-scripts, diffusers, PEFT or LyCORIS",
        EVERYDAY,
        (
            "lbm-lora convert --lora_path lora.safetensors --to comfyui --save_to lora_comfyui.safetensors",
            "lbm-lora convert --lora_path lora.safetensors --to diffusers --biases lora_bias --norms drop --save_to "
            "pytorch_lora_weights.safetensors",
            "lbm-lora convert --lora_path from_peft --to native --save_to lora.safetensors",
        ),
    ),
    "train": Command(
        "train",
        "TrainRunConfig",
        "train a LoRA, new or continued, or the full denoiser",
        EVERYDAY,
        (
            "lbm-lora train --path_config train.yaml",
            "lbm-lora train --path_config train.yaml --learning_rate 5e-5 --max_steps 2000 --num_steps 1 4",
        ),
    ),
    "base": Command(
        "base",
        "BaseConfig",
        "make the exact base from SDXL and LBM's config",
        MORE,
        (
            "lbm-lora base --config_path config.yaml --save_path base.safetensors",
            "lbm-lora base --config_path config.yaml --backbone_signature sd_xl_base_1.0.safetensors --save_path "
            "base.safetensors --tuned_model_path model.safetensors",
        ),
    ),
    "calibrate": Command(
        "calibrate",
        "CalibrateConfig",
        "measure which errors a tuned model's output is sensitive to",
        MORE,
        ("lbm-lora calibrate --tuned_model_path tuned.safetensors --images photos --save_to statistics.safetensors",),
    ),
    "refine": Command(
        "refine",
        "RefineConfig",
        "train a LoRA on the tuned model's own outputs on images",
        MORE,
        (
            f"lbm-lora refine {_PAIR} --lora_path lora.safetensors --images photos --save_to refined.safetensors "
            "--steps 400",
        ),
    ),
    "merge": Command(
        "merge",
        "MergeConfig",
        "merge LoRAs into one",
        MORE,
        (
            "lbm-lora merge --lora_path a.safetensors b.safetensors --lora_scale 1 0.5 --save_to merged.safetensors",
            "lbm-lora merge --lora_path relight.safetensors more.safetensors --save_to one.safetensors --max_size "
            "100MB",
        ),
    ),
    "layers": Command(
        "layers",
        "LayersConfig",
        "list the layers that a LoRA can hold, or what patterns select",
        MORE,
        (
            "lbm-lora layers --model_path base.safetensors",
            "lbm-lora layers --model_path base.safetensors --patterns attn1 'mid_block.*' --rank 8",
        ),
    ),
    "inspect": Command(
        "inspect",
        "InspectConfig",
        "show what a file is, or how two differ",
        EVERYDAY,
        (
            "lbm-lora inspect lora.safetensors",
            "lbm-lora inspect lora.safetensors --base_model_path base.safetensors --report lora_report",
            "lbm-lora inspect one.safetensors other.safetensors --json",
        ),
    ),
    "doctor": Command(
        "doctor",
        "DoctorConfig",
        "check this installation and the machine",
        START,
        ("lbm-lora doctor",),
    ),
    "push": Command(
        "push",
        "PushConfig",
        "publish a LoRA on the Hugging Face hub, with a model card",
        MORE,
        (
            "lbm-lora push lora.safetensors --to user/repo --images relit",
            "lbm-lora push lora.safetensors --to user/repo --private --save_to look",
        ),
    ),
    "data pack": Command(
        "data_pack",
        "PackConfig",
        "make WebDataset shards of a folder of pairs",
        MORE,
        ("lbm-lora data pack pairs --to shards",),
    ),
    "data check": Command(
        "data_check",
        "CheckConfig",
        "read a complete data set and report",
        MORE,
        ("lbm-lora data check pairs", "lbm-lora data check 'shards/pairs-{000000..000009}.tar' --image_size 512 1024"),
    ),
}
"""Words that a user types -> the workflow behind them."""

SHARDS = "infer --source_shards"
"""Another verb: images and shards have different flags."""


def command_for(name: str, words: Sequence[str]) -> Command | Verb:
    """Return the command behind a name; images and shards have different flags."""
    flags = {word.partition("=")[0].replace("-", "_") for word in words}
    if name == "infer" and "__source_shards" in flags:
        return verb_named(SHARDS)
    return verb_named(name) if name in VERBS else COMMANDS[name]


def all_commands() -> dict[str, Command | Verb]:
    """Every command by what a user types, in the order of the help."""
    return {name: command_for(name, ()) for name in COMMANDS}


def family_of(word: str) -> dict[str, Command | Verb]:
    """The commands of two words whose first one this is."""
    return {name: command for name, command in all_commands().items() if name.startswith(f"{word} ")}
