"""A training step of this package against a loop written by hand with PEFT and torch, on the bundled mini model.

    python -m benchmarks.training [--steps 20] [--rounds 5] [--threads 1] [--precision 32]
    python -m benchmarks.training page

Both take the same model, LoRA, batches, precision, optimizer and checkpointed gradients; the hand-written loop has its
pictures in memory, the package reads its files. The third way is this package with `cache_latents`. Rounds alternate,
with the first steps of each left out. A step counts in wall time and in processor time of this process; the median over
all steps counts. One thread by default: threads that wait for each other spend processor time on it. `page` writes the
measured part of docs/training.md from the newest results of this and of `benchmarks.relight`.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from benchmarks import machine
from benchmarks.results import write_result
from benchmarks.training_page import RESULTS, write_page
from lbm_lora import bundled
from lbm_lora.checkpoint import dtype_of
from lbm_lora.model.build import load_model
from lbm_lora.train.data import BucketBatches, collate, open_data
from lbm_lora.train.run.fit import fit
from lbm_lora.train.settings.train_config import TrainConfig
from lbm_lora.workflows.base import BaseConfig
from lbm_lora.workflows.base import run as make_base

WARM = 3
"""Steps at the start of a round that do not count."""
BY_HAND = "PEFT + torch by hand"
OURS = "lbm-lora train"
CACHED = "lbm-lora train, cache_latents"


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Readings of both clocks, seconds."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> "Moment":
        return cls(wall=time.perf_counter(), cpu=time.process_time())

    def __sub__(self, other: "Moment") -> "Moment":
        return Moment(wall=self.wall - other.wall, cpu=self.cpu - other.cpu)


class Clock:
    """A listener that notes the time of every step."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []
        self._training = False

    def start(self, total: int, what: str) -> None:
        self._training = what == "training"
        self.moments = [Moment.now()]

    def advance(self, n: int = 1) -> None:
        if self._training:
            self.moments.append(Moment.now())

    def note(self, message: str) -> None:
        pass


def package(config: TrainConfig, **changes: Any) -> list[Moment]:
    """The time of each step of a run."""
    assert config.base_model_path is not None
    shutil.rmtree(config.save_ckpt_path, ignore_errors=True)
    clock = Clock()
    fit(config.model_copy(update=changes), config.base_model_path, clock)
    return differences(clock.moments)


def by_hand(config: TrainConfig) -> list[Moment]:
    """The same steps, written down straight."""
    assert config.base_model_path is not None
    torch.manual_seed(config.seed)
    mixed = config.precision == "bf16-mixed"
    model = load_model(config.base_model_path, dtype=dtype_of(config.base_dtype))
    denoiser = model.denoiser
    denoiser.enable_gradient_checkpointing()
    targets = [name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    lora = LoraConfig(r=config.lora_rank or 1, lora_alpha=config.lora_rank or 1, target_modules=targets)
    inject_adapter_in_model(lora, denoiser)
    learning = [parameter for name, parameter in denoiser.named_parameters() if "lora_" in name]
    for parameter in learning:
        parameter.data = parameter.data.float()
    denoiser.train()
    optimizer = torch.optim.AdamW(learning, lr=config.learning_rate, fused=True)
    data = open_data(config, "train", seed=config.seed)
    batches = [
        collate([data[draw] for draw in draws]) for draws in BucketBatches(data, config.batch_size, seed=0).epoch(0)
    ]
    levels = torch.tensor([0.25, 0.5, 0.75, 1.0])
    moments = [Moment.now()]
    for step in range(config.max_steps or 0):
        batch = batches[step % len(batches)]
        assert batch.source is not None
        assert batch.target is not None
        with torch.no_grad():
            source, target = model.encode(batch.source).float(), model.encode(batch.target).float()
        sigma = levels[torch.randint(len(levels), (len(batch),))]
        s = sigma.view(-1, 1, 1, 1)
        noisy = s * source + (1 - s) * target + 0.005 * (s * (1 - s)).sqrt() * torch.randn_like(source)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            prediction = denoiser(noisy.to(model.dtype), 1000 * sigma, encoder_hidden_states=None).sample
            loss = nn.functional.mse_loss(prediction.float(), source - target)
        loss.backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        moments.append(Moment.now())
    return differences(moments)


def differences(moments: Sequence[Moment]) -> list[Moment]:
    """The time from each moment to the next, without the first steps."""
    return [after - before for before, after in pairwise(moments)][WARM:]


def summed_up(rounds: dict[str, list[list[Moment]]]) -> dict[str, dict[str, Any]]:
    """Per way the median step over all rounds, its ratio to the hand-written loop's, and the same round by round."""
    found: dict[str, dict[str, Any]] = {}
    for name, steps in rounds.items():
        row: dict[str, Any] = {"steps": sum(map(len, steps))}
        for clock in ("cpu", "wall"):
            mine, reference = (_medians(rounds[way], clock) for way in (name, BY_HAND))
            row[f"{clock}_s"] = _median(steps, clock)
            row[f"{clock}_ratio"] = _median(steps, clock) / _median(rounds[BY_HAND], clock)
            row[f"{clock}_ratios"] = [a / b for a, b in zip(mine, reference, strict=True)]
        found[name] = row
    return found


def _median(steps: Sequence[Sequence[Moment]], clock: str) -> float:
    return median(getattr(step, clock) for part in steps for step in part)


def _medians(steps: Sequence[Sequence[Moment]], clock: str) -> list[float]:
    return [_median([part], clock) for part in steps]


def measure(arguments: argparse.Namespace) -> dict[str, list[list[Moment]]]:
    """Every way, once in each round: way -> round -> the time of each step."""
    with tempfile.TemporaryDirectory() as folder:
        base = make_base(BaseConfig(config_path=bundled.TUNED / "config.yaml", save_path=Path(folder) / "base.ckpt"))
        config = TrainConfig(
            train_folder=bundled.PAIRS,
            base_model_path=base.base.safetensors,
            lora_rank=4,
            batch_size=arguments.batch_size,
            image_size=(128,),
            device="cpu",
            precision=arguments.precision,
            base_dtype="float" if arguments.precision == "32" else "bf16",
            max_steps=arguments.steps + WARM,
            max_epochs=arguments.steps + WARM,
            logger="none",
            save_interval=10**9,
            save_ckpt_path=Path(folder) / "run",
            cache_dir=Path(folder) / "latents",
        )
        ways: dict[str, Callable[[], list[Moment]]] = {
            BY_HAND: lambda: by_hand(config),
            OURS: lambda: package(config),
            CACHED: lambda: package(config, cache_latents=True),
        }
        rounds: dict[str, list[list[Moment]]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, run in ways.items():
                rounds[name].append(run())
    return rounds


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write the result; or write the page."""
    arguments = _parser().parse_args(argv)
    if arguments.what == "page":
        print(write_page(arguments.results))
        return 0
    torch.set_num_threads(arguments.threads)
    ways = summed_up(measure(arguments))
    for name, row in ways.items():
        print(
            f"{name:<30} CPU {row['cpu_s']:.4f} s a step, {row['cpu_ratio']:.3f} x; wall {row['wall_s']:.4f} s, "
            f"{row['wall_ratio']:.3f} x  ({row['steps']} steps)"
        )
    names = ("steps", "rounds", "threads", "batch_size", "precision")
    settings = {name: getattr(arguments, name) for name in names}
    path = write_result(
        arguments.results,
        "step_time",
        {"machine": machine.machine(arguments.threads), "versions": machine.versions(), "ways": ways},
        command=" ".join(["python -m benchmarks.training", *(f"--{key} {value}" for key, value in settings.items())]),
        settings=settings | {"rank": 4, "size": 128},
        pair={"base": "the bundled backbone's exact base, bf16"},
        slug=machine.slug(arguments.threads),
    )
    print(path.name)
    if arguments.results == RESULTS:
        write_page(RESULTS)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("what", nargs="?", choices=("run", "page"), default="run", help="measure, or write the page's part")
    add("--steps", type=int, default=20, help="of a round")
    add("--rounds", type=int, default=5)
    add("--threads", type=int, default=1, help="of torch")
    add("--batch_size", type=int, default=2)
    add("--precision", choices=["32", "bf16-mixed"], default="32")
    add("--results", type=Path, default=RESULTS, help="folder of result files")
    return parser


if __name__ == "__main__":
    sys.exit(main())
