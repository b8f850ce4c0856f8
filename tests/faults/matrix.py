"""The matrix: kinds of input x faults x commands.

A case writes spoilt input into a folder of its own and runs one command on it. Its name says which:
`base .safetensors | cut at 3/12 | fuse`.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults import spoil
from faults.goods import FOREIGN, Goods

from lbm_lora.training.settings import TrainConfig
from nano import UNET, VAE

REFUSED, EITHER = frozenset({2}), frozenset({0, 1, 2})


@dataclass(frozen=True)
class Case:
    """One cell of the matrix.

    Attributes:
        kind, fault, command: its name.
        prepare: writes the spoilt input into the case's folder and returns the words of the command line.
        codes: exit codes that are right.
    """

    kind: str
    fault: str
    command: str
    prepare: Callable[[Path], list[str]]
    codes: frozenset[int] = REFUSED

    @property
    def name(self) -> str:
        return f"{self.kind} | {self.fault} | {self.command}"


Words = Callable[[str, Path], list[str]]
"""`words(spoilt, folder)`: a command line with the spoilt file in it."""


def cases(goods: Goods) -> list[Case]:
    """Every case, in a fixed order."""
    found = [
        *_networks(goods),
        *_loras(goods),
        *_statistics(goods),
        *_images(goods),
        *_configs(goods),
        *_shards(goods),
    ]
    names = [case.name for case in found]
    assert len(set(names)) == len(names), [name for name in names if names.count(name) > 1][:5]
    return found


def _crossed(
    kind: str,
    file: str,
    good: Path,
    faults: spoil.Faults,
    commands: dict[str, Words],
    *,
    may_pass: Iterable[str] = (),
    beside: Sequence[Path] = (),
) -> Iterator[Case]:
    """Every fault in every command.

    Args:
        file: name of the spoilt file in the case's folder.
        may_pass: beginnings of the names of faults that need not be refused; with a command's name behind ` | `, in
            that command.
        beside: files copied next to it.
    """
    allowed = tuple(may_pass)
    for fault, write in faults.items():
        for command, words in commands.items():

            def prepare(folder: Path, write: spoil.Spoil = write, words: Words = words) -> list[str]:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                for path in beside:
                    shutil.copy(path, (folder / file).parent)
                target = folder / file
                if target.exists():
                    target.unlink()
                write(target, good)
                return words(str(target), folder)

            passes = any(
                fault.startswith(one.partition(" | ")[0]) and one.partition(" | ")[2] in ("", command)
                for one in allowed
            )
            yield Case(kind, fault, command, prepare, EITHER if passes else REFUSED)


def network_commands(goods: Goods, side: str) -> dict[str, Words]:
    """Commands that read a checkpoint of the small network."""
    other = goods.text(f"small/{'tuned' if side == 'base' else 'base'}.safetensors")
    lora = goods.text("small/lora.safetensors")

    def pair(path: str) -> list[str]:
        base, tuned = (path, other) if side == "base" else (other, path)
        return ["--base_model_path", base, "--tuned_model_path", tuned]

    commands: dict[str, Words] = {
        f"extract {side}": lambda path, out: ["extract", *pair(path), "--save_to", f"{out}/out.safetensors"],
        f"extract {side} --max_error": lambda path, out: [
            "extract", *pair(path), "--save_to", f"{out}/out.safetensors", "--max_error", "0.2",
        ],
        f"validate {side}": lambda path, out: [
            "validate", *pair(path), "--lora_path", lora, "--report", f"{out}/report",
        ],
        "inspect": lambda path, out: ["inspect", path],
    }  # fmt: skip
    if side == "base":
        commands["fuse"] = lambda path, out: [
            "fuse", "--base_model_path", path, "--lora_path", lora, "--save_to", f"{out}/out.safetensors",
            "--allow_other_base",
        ]  # fmt: skip
        commands["layers"] = lambda path, out: ["layers", "--model_path", path]
    return commands


def _networks(goods: Goods) -> Iterator[Case]:
    for side in ("base", "tuned"):
        commands = network_commands(goods, side)
        reading = {name: words for name, words in commands.items() if name not in ("inspect", "layers")}
        looking = {name: words for name, words in commands.items() if name not in reading}
        good = goods / f"small/{side}.safetensors"
        faults = spoil.any_file() | spoil.flips(600, 24) | spoil.safetensors_header()
        yield from _crossed(f"{side} .safetensors", "x.safetensors", good, faults, commands, may_pass=("flip",))
        contents = spoil.values("", 2) | spoil.values("running_var", 1) | spoil.forms()
        # `fuse` takes a base with a tensor more: every other one is as the LoRA needs it
        passing = ("as torch.float8", "an unknown tensor | fuse")
        yield from _crossed(f"{side} .safetensors", "x.safetensors", good, contents, reading, may_pass=passing)
        yield from _crossed(f"{side} .safetensors", "x.safetensors", good, contents, looking, may_pass=("",))
        good = goods / f"small/{side}-torch.ckpt"
        faults = spoil.any_file() | spoil.torch_files()
        passing = (
            "pickle flip", "pickle cut", "a knot", "a shared tree", "a sparse", "only unknown names | inspect",
            "only unknown names | layers", "storage shorter | inspect", "a tensor alone",
        )  # fmt: skip
        yield from _crossed(f"{side} .ckpt", "x.ckpt", good, faults, commands, may_pass=passing)
        shards = goods / f"small/{side}-shards"
        beside = sorted(shards.glob("*.safetensors"))
        index = shards / "model.safetensors.index.json"
        name = "shards/model.safetensors.index.json"
        passing = ("a key left out",)
        yield from _crossed(
            f"{side} index", name, index, spoil.indexes() | spoil.any_file(), commands, beside=beside, may_pass=passing
        )
    yield from _folders(goods)


def _folders(goods: Goods) -> Iterator[Case]:
    def several(folder: Path) -> str:
        for name in ("a.safetensors", "b.safetensors"):
            shutil.copy(goods / "small/base.safetensors", folder / name)
        return str(folder)

    def foreign(folder: Path) -> str:
        (folder / "notes.txt").write_text("x")
        return str(folder)

    def nested(folder: Path) -> str:
        (folder / "model.safetensors").mkdir()
        return str(folder)

    def looped(folder: Path) -> str:
        (folder / "sub").symlink_to(folder)
        return str(folder / "sub/sub/sub")

    folders = {"empty": str, "several": several, "foreign": foreign, "nested": nested, "loop": looped}
    for fault, make in folders.items():
        for command, words in network_commands(goods, "base").items():

            def prepare(out: Path, make: Callable[[Path], str] = make, words: Words = words) -> list[str]:
                (out / "in").mkdir()
                return words(make(out / "in"), out)

            yield Case("base folder", fault, command, prepare)


def lora_commands(goods: Goods, base: str, tuned: str) -> dict[str, Words]:
    return {
        "fuse": lambda path, out: [
            "fuse", "--base_model_path", base, "--lora_path", path, "--save_to", f"{out}/out.safetensors",
        ],
        "fuse two": lambda path, out: [
            "fuse", "--base_model_path", base, "--lora_path", path, path, "--lora_scale", "0.5", "-0.25",
            "--save_to", f"{out}/out.ckpt",
        ],
        "validate": lambda path, out: [
            "validate", "--base_model_path", base, "--tuned_model_path", tuned, "--lora_path", path,
        ],
        "merge": lambda path, out: ["merge", "--lora_path", path, path, "--save_to", f"{out}/out.safetensors"],
        "inspect": lambda path, out: ["inspect", path],
    }  # fmt: skip


def _loras(goods: Goods) -> Iterator[Case]:
    base, tuned = (goods.text(f"small/{side}.safetensors") for side in ("base", "tuned"))
    commands = lora_commands(goods, base, tuned)
    for name, part in {"lora": "lora_up", "int8": "lora_unit"}.items():
        good = goods / f"small/{name}.safetensors"
        faults = spoil.any_file() | spoil.flips(1500, 24) | spoil.safetensors_header()
        kind = f"{name} .safetensors"
        passing = ("flip", "entry ", "metadata", "an unknown tensor | inspect", "without a tensor | inspect")
        yield from _crossed(kind, "x.safetensors", good, faults, commands, may_pass=("flip",))
        numbers = spoil.values(part) | spoil.values(".d") | (spoil.values("alpha") if name == "lora" else {})
        yield from _crossed(kind, "x.safetensors", good, numbers, commands, may_pass=(" | inspect",))
        yield from _crossed(kind, "x.safetensors", good, spoil.entries(good), commands, may_pass=passing)
        forms = spoil.forms("lora_" if name == "lora" else "")
        yield from _crossed(kind, "x.safetensors", good, forms, commands, may_pass=("",))
    good = goods / "small/packed.safetensors"
    faults = spoil.any_file() | spoil.flips(3000, 24) | spoil.safetensors_header() | spoil.packed()
    faults |= spoil.entries(good)
    passing = ("flip", "entry ", "metadata", "data of zeros", " | inspect")
    yield from _crossed("packed .safetensors", "x.safetensors", good, faults, commands, may_pass=passing)
    lbm = [goods.text(f"lbm/{side}/model.safetensors") for side in ("base", "tuned")]
    commands = {
        name: words for name, words in lora_commands(goods, *lbm).items() if name in ("fuse", "merge", "inspect")
    }
    for name in FOREIGN:
        folder = name == "peft"
        good = goods / ("lbm/peft/adapter_model.safetensors" if folder else f"lbm/{name}.safetensors")
        file = "peft/adapter_model.safetensors" if folder else "x.safetensors"
        beside = [goods / "lbm/peft/adapter_config.json"] if folder else []
        faults = spoil.flips(1500, 8) | spoil.values("") | spoil.forms()
        faults |= {key: value for key, value in spoil.safetensors_header().items() if key.startswith(("entry", "meta"))}
        faults |= {key: value for key, value in spoil.any_file().items() if key.startswith(("cut", "fifo", "empty"))}
        faults |= {key: value for key, value in spoil.entries(good).items() if "format" not in key}
        passing = ("flip", "entry ", "as torch", "an unknown", "without a", "a tensor renamed", "flattened", "a row",
                   "a number", "another axis", "a name of", "empty folder", " | inspect")  # fmt: skip
        yield from _crossed(f"{name} LoRA", file, good, faults, commands, beside=beside, may_pass=passing)
    config = goods / "lbm/peft/adapter_config.json"
    beside = [goods / "lbm/peft/adapter_model.safetensors"]
    folder_words = {
        name: (lambda path, out, words=words: words(str(Path(path).parent), out)) for name, words in commands.items()
    }
    faults = spoil.any_file() | _json_values(config)
    yield from _crossed(
        "PEFT config", "peft/adapter_config.json", config, faults, folder_words, beside=beside,
        may_pass=("value", "cut by one byte", "cut at 11", "missing", " | inspect"),
    )  # fmt: skip
    yield from _scales(goods, base)


def _json_values(good: Path) -> spoil.Faults:
    def put(key: str, value: object) -> spoil.Spoil:
        def write(target: Path, good: Path) -> None:
            target.write_text(json.dumps({**json.loads(good.read_text()), key: value}))

        return write

    wrong: tuple[Any, ...] = (None, "text", -1, 0, 1e308, float("nan"), [], {}, {"(a+)+$": 3}, 10**400)
    keys = [key for key in json.loads(good.read_text()) if key in ("r", "lora_alpha", "rank_pattern", "alpha_pattern",
            "use_rslora", "use_dora", "peft_type", "bias", "modules_to_save", "init_lora_weights")]  # fmt: skip
    return {f"value {key} {str(value)[:20]}": put(key, value) for key in keys for value in wrong}


SCALES = (
    "1e38", "-1e38", "3e38", "1e39", "1e308", "nan", "inf", "1e400", "head.0=1e38", "head.0=nan", "=", "x=1",
)  # fmt: skip


def _scales(goods: Goods, base: str) -> Iterator[Case]:
    """Scales that no number of the result survives."""
    for name in ("lora", "int8"):
        lora = goods.text(f"small/{name}.safetensors")
        for scale in SCALES:
            for suffix in ("safetensors", "ckpt"):

                def fuse(folder: Path, lora: str = lora, scale: str = scale, suffix: str = suffix) -> list[str]:
                    return ["fuse", "--base_model_path", base, "--lora_path", lora, "--lora_scale", scale,
                            "--save_to", f"{folder}/out.{suffix}"]  # fmt: skip

                yield Case(f"scale of {name}", scale, f"fuse to .{suffix}", fuse)

            def merge(folder: Path, lora: str = lora, scale: str = scale) -> list[str]:
                return ["merge", "--lora_path", lora, lora, "--lora_scale", scale, "--save_to",
                        f"{folder}/out.safetensors"]  # fmt: skip

            yield Case(f"scale of {name}", scale, "merge", merge, EITHER)


def _statistics(goods: Goods) -> Iterator[Case]:
    good = goods / "lbm/statistics.safetensors"
    base, tuned = (goods.text(f"lbm/{side}/model.safetensors") for side in ("base", "tuned"))
    lora = goods.text("lbm/lora.safetensors")
    commands: dict[str, Words] = {
        "extract": lambda path, out: [
            "extract", "--base_model_path", base, "--tuned_model_path", tuned, "--calibration", path, "--include",
            "conv_in", "attn1", "--max_size", "20KB", "--save_to", f"{out}/out.safetensors",
        ],
        "merge": lambda path, out: [
            "merge", "--lora_path", lora, lora, "--calibration", path, "--max_size", "20KB", "--save_to",
            f"{out}/out.safetensors",
        ],
    }  # fmt: skip
    faults = spoil.any_file() | spoil.flips(1500, 8)
    attention = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    faults |= spoil.values(f"inputs.{attention}") | spoil.values(f"outputs.{attention}")
    faults |= spoil.facts(good, "lbm_lora_statistics_facts") | spoil.entries(good)
    passing = ("flip", "fact", "entry")
    yield from _crossed("statistics", "x.safetensors", good, faults, commands, may_pass=passing)


def _images(goods: Goods) -> Iterator[Case]:
    base, tuned = (goods.text(f"lbm/{side}/model.safetensors") for side in ("base", "tuned"))
    lora, one = goods.text("lbm/lora.safetensors"), goods.text("images/0.png")
    infer = ["infer", "--base_model_path", base, "--device", "cpu", "--size", "64"]
    pair = ["--base_model_path", base, "--tuned_model_path", tuned]
    commands: dict[str, Words] = {
        "infer": lambda path, out: [*infer, "--source_image", path, "--output_path", f"{out}/out.png"],
        "infer --mask": lambda path, out: [
            *infer, "--source_image", one, "--mask", path, "--output_path", f"{out}/out.png",
        ],
        "validate --images": lambda path, out: [
            "validate", *pair, "--lora_path", lora, "--images", path, "--size", "64", "--report", f"{out}/report",
        ],
        "calibrate": lambda path, out: [
            "calibrate", "--tuned_model_path", tuned, "--images", path, "--size", "64", "--probes", "1", "--timesteps",
            "250", "--save_to", f"{out}/out.safetensors",
        ],
        "refine": lambda path, out: [
            "refine", *pair, "--lora_path", lora, "--images", path, "--held_images", one, "--size", "64", "--steps",
            "1", "--save_to", f"{out}/out.safetensors",
        ],
    }  # fmt: skip
    faults = spoil.any_file() | spoil.images()
    passing = (*spoil.PASSING_IMAGES, "cut by one byte", "cut at 11")
    yield from _crossed("image", "x.png", goods / "images/0.png", faults, commands, may_pass=passing)

    def folder_of(path: str) -> str:
        return str(Path(path).parent)

    data: dict[str, Words] = {
        "data check": lambda path, out: ["data", "check", folder_of(path), "--source_key", "source.png",
                                         "--target_key", "target.png", "--image_size", "64"],
        "data pack": lambda path, out: ["data", "pack", folder_of(path), "--to", f"{out}/packed", "--source_key",
                                        "source.png", "--target_key", "target.png"],
    }  # fmt: skip
    beside = [goods / f"pairs/{name}" for name in ("0.target.png", "1.source.png", "1.target.png")]
    # a corrupt sample of two ends either command; what is no file at all is not seen as one
    yield from _crossed(
        "image of a data set", "pairs/0.source.png", goods / "pairs/0.source.png", faults, data, beside=beside,
        may_pass=("",),
    )  # fmt: skip


LONG = (
    "max_steps", "max_epochs", "num_workers", "resume", "devices", "num_nodes", "wandb_project", "logger",
    "save_ckpt_path", "accumulate",
)  # fmt: skip
"""Keys of a training file that would make a run long, or that have values of their own."""


def _configs(goods: Goods) -> Iterator[Case]:
    base = goods.text("lbm/base/model.safetensors")
    one = goods.text("images/0.png")
    commands: dict[str, Words] = {
        "infer --config_path": lambda path, out: [
            "infer", "--base_model_path", f"{out}/base.safetensors", "--config_path", path, "--source_image", one,
            "--output_path", f"{out}/out.png", "--size", "64", "--device", "cpu",
        ],
        "base": lambda path, out: [
            "base", "--config_path", path, "--backbone_signature", goods.text("backbone"), "--save_path",
            f"{out}/made.safetensors",
        ],
    }  # fmt: skip

    def with_base(words: Words) -> Words:
        def link(path: str, out: Path) -> list[str]:
            os.link(base, out / "base.safetensors")
            return words(path, out)

        return link

    commands["infer --config_path"] = with_base(commands["infer --config_path"])
    good = goods / "config.yaml"
    keys = [
        "backbone_signature", "vae_num_channels", "unet_input_channels", "conditioning_images_keys", "source_key",
        "timestep_sampling", "selected_timesteps", "prob", "bridge_noise_sigma", "unet", "vae", "pixel_loss_max_size",
        "logit_mean",
    ]  # fmt: skip
    keys += [f"unet.{key}" for key in UNET] + [f"vae.{key}" for key in VAE] + ["unet.no_such_key"]
    faults = spoil.any_file() | spoil.yaml_texts() | spoil.yaml_values(keys)
    yield from _crossed("config.yaml", "x.yaml", good, faults, commands, may_pass=("",))
    must = {name: fault for name, fault in (spoil.any_file() | spoil.yaml_texts()).items()
            if not name.startswith(("cut", "null", "empty", "a NUL escaped", "a surrogate"))}  # fmt: skip
    train: dict[str, Words] = {
        "train": lambda path, out: ["train", "--path_config", path, "--save_ckpt_path", f"{out}/run"]
    }
    yield from _crossed("training file", "x.yaml", goods / "train.yaml", must, train)
    flags = [name for name in TrainConfig.model_fields if name not in LONG]
    wrong = tuple(value for value in spoil.WRONG_VALUES if value not in (0, 1.5, 2**64, True, ""))
    faults = spoil.yaml_values(flags, wrong)
    faults |= spoil.yaml_values(["max_steps", "max_epochs", "accumulate"], ("text", -1, 0, 1.5, float("nan"), [], {}))
    faults |= spoil.yaml_values(
        ["optimizer_kwargs"], ({"amsgrad": "text"}, {"differentiable": True}, {"weight_decay": 1e300})
    )
    faults |= spoil.yaml_values(["init_lora", "optimizer", "strategy"], ("pissa_niter_101", "Muon", "ddp_spawn"))
    faults |= spoil.yaml_values(["num_workers", "devices", "num_nodes"], ("text", -1, 10**9, 1.5, float("nan"), [], {}))
    yield from _crossed("training file", "values.yaml", goods / "train.yaml", faults, train, may_pass=("",))


def _shards(goods: Goods) -> Iterator[Case]:
    base = goods.text("lbm/base/model.safetensors")
    commands: dict[str, Words] = {
        "data check": lambda path, out: ["data", "check", path, "--image_size", "64"],
        "infer --source_shards": lambda path, out: [
            "infer", "--base_model_path", base, "--source_shards", path, "--output_path", f"{out}/translated", "--size",
            "64", "--device", "cpu",
        ],
        "train": lambda path, out: [
            "train", "--path_config", goods.text("train.yaml"), "--train_folder", "null", "--train_shards",
            f"[{json.dumps(path)}]", "--save_ckpt_path", f"{out}/run",
        ],
    }  # fmt: skip
    faults = spoil.any_file() | spoil.shards() | spoil.flips(1024, 12)
    passing = ("",)
    yield from _crossed("shard", "x.tar", goods / "shards/0.tar", faults, commands, may_pass=passing)
    patterns = {
        "5000 braces": "x/" + "{" * 5000,
        "unclosed": "x/{0..9.tar",
        "backwards": "x/{9..0}.tar",
        "no such file": "x/{0..3}.tar",
        "a pipe": "pipe:touch ran",
        "a pipe in capitals": "PIPE:touch ran",
        "a pipe behind": "| touch ran",
        "a scheme": "gopher://example.com/a.tar",
        "file scheme": "file:///etc/passwd",
        "NUL": "a\0b.tar",
        "surrogate": "\udcff.tar",
        "300 characters": "a" * 300 + ".tar",
        "a folder without shards": goods.text("lbm"),
        "empty": "",
    }
    for fault, pattern in patterns.items():
        for command, words in commands.items():
            yield Case(
                "shard pattern", fault, command,
                lambda folder, words=words, pattern=pattern: words(pattern, folder),
            )  # fmt: skip
