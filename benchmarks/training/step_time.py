"""Time a training step against a hand-written loop with PEFT and torch, on the bundled mini model.

Both use the same model, LoRA, batches, precision, optimizer and checkpointed gradients; the hand-written loop has its
images in memory, the package reads its files. The third variant is this package with `cache_latents`. Rounds alternate,
and the first steps of each are ignored. Both wall time and processor time of this process are measured.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image
from torch import nn

from benchmarks.command import MINI_PAIR, mini_base
from benchmarks.results import FOLDER, command_of, write_result
from lbm_lora import bundled, load_model, train
from lbm_lora.imaging.tensors import to_tensor
from lbm_lora.progress import Silent

WARM = 3
"""Ignored steps at the start of a round."""
BY_HAND = "PEFT + torch by hand"
OURS = "lbm-lora train"
CACHED = "lbm-lora train, cache_latents"
RANK = 4
SIZE = 128

Times = np.ndarray
"""Seconds per step, (steps, 2): processor time and wall time."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure the time of a training step (run). `relight` has its own --help; `page` writes the page."""

    steps: int = 20  # steps per round
    rounds: int = 5  # rounds; each measures every variant once
    threads: int = 1  # torch threads; waiting for each other costs processor time
    batch_size: int = 2  # pairs per step
    precision: Literal["32", "bf16-mixed"] = "32"  # precision of the forward pass
    results: Path = FOLDER / "training"  # folder of result files


class StepClock(Silent):
    """A progress listener that reads both clocks after every training step."""

    def __init__(self) -> None:
        self.readings: list[tuple[float, float]] = []
        self._training = False

    def start(self, total: int, what: str) -> None:
        """Start a phase."""
        self._training = what == "training"
        self.readings = [_now()]

    def advance(self, n: int = 1) -> None:
        """Record a step."""
        if self._training:
            self.readings.append(_now())


def run(options: Options) -> Path:
    """Measure, print, and write the result."""
    torch.set_num_threads(options.threads)
    ways = summed_up(_measure(options))
    for name, row in ways.items():
        print(f"{name}: {', '.join(f'{key} {value}' for key, value in row.items())}")
    settings = {key: value for key, value in asdict(options).items() if key != "results"}
    return write_result(
        options.results,
        "step_time",
        ways=ways,
        command=command_of("benchmarks.training", options),
        settings=settings | {"rank": RANK, "size": SIZE},
        pair=MINI_PAIR,
        cores=options.threads,
    )


def step_times(readings: Sequence[tuple[float, float]]) -> Times:
    """Return the time between consecutive readings, without the first steps."""
    return np.diff(np.array(readings), axis=0)[WARM:]


def summed_up(rounds: Mapping[str, Sequence[Times]]) -> dict[str, dict[str, Any]]:
    """Return each variant's median step over all rounds, its ratio to the hand-written loop, and both per round."""
    found: dict[str, dict[str, Any]] = {}
    for name, times in rounds.items():
        row: dict[str, Any] = {"steps": sum(map(len, times))}
        for index, clock in enumerate(("cpu", "wall")):
            mine, reference = ([part[:, index] for part in rounds[way]] for way in (name, BY_HAND))
            median = float(np.median(np.concatenate(mine)))
            ratios = [float(np.median(one) / np.median(other)) for one, other in zip(mine, reference, strict=True)]
            row |= {f"{clock}_s": median, f"{clock}_ratio": median / float(np.median(np.concatenate(reference)))}
            row[f"{clock}_ratios"] = ratios
        found[name] = row
    return found


def _measure(options: Options) -> dict[str, list[Times]]:
    """Measure every variant once per round."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        base = mini_base(folder / "base.safetensors")
        ways: dict[str, Callable[[], Times]] = {
            BY_HAND: lambda: _by_hand(base, options),
            OURS: lambda: _package(base, options, folder, cache_latents=False),
            CACHED: lambda: _package(base, options, folder, cache_latents=True),
        }
        rounds: dict[str, list[Times]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, way in ways.items():
                rounds[name].append(way())
    return rounds


def _package(base: Path, options: Options, folder: Path, *, cache_latents: bool) -> Times:
    """Time a run of the package."""
    count = options.steps + WARM
    data = {"train_folder": str(bundled.PAIRS), "source_key": "source.png", "target_key": "target.png"}
    data |= {"image_size": [SIZE], "cache_latents": cache_latents, "cache_dir": str(folder / "latents")}
    model = {"base_model_path": str(base), "lora_rank": RANK, "device": "cpu"}
    model |= {"precision": options.precision, "base_dtype": "float" if options.precision == "32" else "bf16"}
    steps = {"batch_size": options.batch_size, "max_steps": count, "max_epochs": count}
    files = {"logger": "none", "save_interval": 10**9, "save_ckpt_path": str(folder / "run")}
    (folder / "train.yaml").write_text(yaml.safe_dump({**data, **model, **steps, **files}))
    shutil.rmtree(folder / "run", ignore_errors=True)
    clock = StepClock()
    train(folder / "train.yaml", progress=clock)
    return step_times(clock.readings)


def _by_hand(base: Path, options: Options) -> Times:
    """Time the same steps, written by hand."""
    torch.manual_seed(0)
    mixed = options.precision == "bf16-mixed"
    model = load_model(base, dtype=torch.bfloat16 if mixed else torch.float32)
    denoiser = model.denoiser
    denoiser.enable_gradient_checkpointing()
    targets = [name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets), denoiser)
    learning = [parameter for name, parameter in denoiser.named_parameters() if "lora_" in name]
    for parameter in learning:
        parameter.data = parameter.data.float()
    denoiser.train()
    optimizer = torch.optim.AdamW(learning, lr=1e-4, fused=True)
    images = {role: to_tensor([Image.open(path) for path in sorted(bundled.PAIRS.glob(f"*.{role}.png"))])
              for role in ("source", "target")}  # fmt: skip
    levels = torch.tensor([0.25, 0.5, 0.75, 1.0])
    readings = [_now()]
    for step in range(options.steps + WARM):
        chosen = torch.arange(step * options.batch_size, (step + 1) * options.batch_size) % len(images["source"])
        with torch.no_grad():
            source, target = (model.encode(images[role][chosen]).float() for role in ("source", "target"))
        sigma = levels[torch.randint(len(levels), (len(chosen),))]
        s = sigma.view(-1, 1, 1, 1)
        noisy = s * source + (1 - s) * target + 0.005 * (s * (1 - s)).sqrt() * torch.randn_like(source)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            prediction = denoiser(noisy.to(model.dtype), 1000 * sigma, encoder_hidden_states=None).sample
            loss = nn.functional.mse_loss(prediction.float(), source - target)
        loss.backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        readings.append(_now())
    return step_times(readings)


def _now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()
