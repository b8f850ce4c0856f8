"""`lbm-lora COMMAND ...`: each command is a workflow's frozen config, read by tyro.

Only the chosen command is imported, so that `--help` and a typing error answer at once. Results go to stdout,
progress and log lines to stderr. Exit codes: 0 done, 1 below the asked quality, 2 bad usage or input, 3 an error of
ours.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, make_dataclass, replace
from importlib import import_module
from typing import Any

import tyro

from lbm_lora import __version__
from lbm_lora.cli.overrides import split_overrides
from lbm_lora.threads import chosen_threads, sleep_while_waiting


@dataclass(frozen=True)
class Command:
    """Attributes:
    module: in `lbm_lora.workflows` and `lbm_lora.configs`.
    config: name of its config class.
    what: it does, for `lbm-lora --help`.
    """

    module: str
    config: str
    what: str


COMMANDS: dict[str, Command] = {
    "base": Command("base", "BaseConfig", "make the exact base from SDXL and LBM's config"),
    "extract": Command("extract", "ExtractConfig", "extract a LoRA from a fine-tuned checkpoint"),
    "validate": Command("validate", "ValidateConfig", "measure how well a LoRA gives back the tuned checkpoint"),
    "infer": Command("infer", "InferConfig", "translate images with a checkpoint and LoRAs"),
    "fuse": Command("fuse", "FuseConfig", "add LoRAs to a checkpoint's weights"),
    "train": Command("train", "TrainRunConfig", "train a LoRA, new or continued, or the whole denoiser"),
    "data pack": Command("data_pack", "PackConfig", "make WebDataset shards of a folder of pairs"),
    "data check": Command("data_check", "CheckConfig", "read a data set through and report"),
    "calibrate": Command("calibrate", "CalibrateConfig", "measure which errors a tuned model's output is sensitive to"),
    "refine": Command("refine", "RefineConfig", "let a LoRA learn the tuned model's own outputs on images"),
    "layers": Command("layers", "LayersConfig", "list the layers that a LoRA can hold, or what patterns select"),
    "compress": Command("compress", "CompressConfig", "make a small LoRA of a model in one go, and measure it"),
    "demo": Command("demo", "DemoConfig", "compress the bundled mini model, and relight an image"),
}
"""What a user types -> the workflow behind it."""

INFER_SHARDS = Command("infer_shards", "InferShardsConfig", "translate WebDataset shards with a checkpoint and LoRAs")
"""What `infer --source_shards` stands for."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """How the command line answers."""

    json: bool = False
    """Print the result as JSON on stdout."""
    verbose: bool = False
    """Say more: every layer of a ledger."""
    debug: bool = False
    """Show the traceback of an error."""
    threads: int | None = None
    """CPU threads of each process. Default: OMP_NUM_THREADS where it is set, else 1 for a model of under 100 million
    parameters and every usable core for a larger one."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the exit code."""
    sleep_while_waiting()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"lbm-lora {__version__}")
        return 0
    command, rest = _command_of(arguments)
    if command not in COMMANDS:
        return _unknown(command)
    return _run(command, rest)


def usage() -> str:
    """The text of `lbm-lora --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.what}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"lbm-lora {__version__}: LoRA for Latent Bridge Matching",
            "",
            "usage: lbm-lora COMMAND [--flag value ...]",
            "",
            *lines,
            "",
            "lbm-lora COMMAND --help lists a command's flags. New here? lbm-lora demo",
        ]
    )


def parse(command: str, arguments: Sequence[str]) -> tuple[Any, Output]:
    """The config of a command and the output settings; a usage error exits with 2, as tyro does."""
    chosen = _command_for(command, arguments)
    config = getattr(import_module(f"lbm_lora.configs.{chosen.module}"), chosen.config)
    call = make_dataclass("call", [("config", config), ("output", Output, field(default_factory=Output))], frozen=True)
    own, overrides = split_overrides(arguments, _list_keys()) if command == "train" else (arguments, ())
    parsed = tyro.cli(
        tyro.conf.OmitArgPrefixes[call],
        args=own,
        prog=f"lbm-lora {command}",
        description=_training_keys() if command == "train" else "",
        use_underscores=True,
    )
    return (replace(parsed.config, overrides=overrides) if overrides else parsed.config), parsed.output


def _run(command: str, arguments: Sequence[str]) -> int:
    from lbm_lora.cli.console import session

    with session(debug="--debug" in arguments) as console:
        config, output = parse(command, arguments)
        chosen = _command_for(command, arguments)
        with chosen_threads(output.threads, console.progress.note):
            result = _workflow(chosen).run(config, console.progress)
        if getattr(result, "rank", 0):
            return console.exit_code  # of several processes the first one speaks
        from lbm_lora.cli.present import present

        console.print_result(present(chosen.module, result, verbose=output.verbose), result, as_json=output.json)
        for failure in getattr(result, "failures", ()):
            console.fail(failure)
    return console.exit_code


def _workflow(command: Command) -> Any:
    return import_module(f"lbm_lora.workflows.{command.module}")


def _command_for(word: str, arguments: Sequence[str]) -> Command:
    """The command behind a word; images and shards have flags of their own."""
    flags = {argument.partition("=")[0].replace("-", "_") for argument in arguments}
    return INFER_SHARDS if word == "infer" and "__source_shards" in flags else COMMANDS[word]


def _command_of(arguments: list[str]) -> tuple[str, list[str]]:
    """The command, of one word or of two, and its arguments."""
    two = " ".join(arguments[:2])
    return (two, arguments[2:]) if two in COMMANDS else (arguments[0], arguments[1:])


def _list_keys() -> set[str]:
    """The keys of a training file whose value is a list."""
    from lbm_lora.training.settings.train_config import TrainConfig

    return {name for name, key in TrainConfig.model_fields.items() if "tuple[" in str(key.annotation)}


def _training_keys() -> str:
    """The keys of a training file with their defaults, for `train --help`."""
    from lbm_lora.training.settings.train_config import TrainConfig

    lines: list[str] = []
    for name, key in TrainConfig.model_fields.items():
        default = json.dumps(key.get_default(call_default_factory=True), default=str)
        about = f"\n      {key.description}" if key.description else ""
        lines.append(f"  --{name} {default}{about}")
    return "\n".join(["Keys of the training file, each with its default:", "", *lines])


def _unknown(command: str) -> int:
    from difflib import get_close_matches

    near = get_close_matches(command, COMMANDS, n=1, cutoff=0.4)
    hint = f"Did you mean '{near[0]}'?" if near else f"Commands: {', '.join(COMMANDS)}."
    print(f"error: '{command}' is no command of lbm-lora. {hint}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
