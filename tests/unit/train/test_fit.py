"""Whole short runs on the TINY stand-in: what they leave, and that a stopped one goes on as if it had not stopped."""

import csv
import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from lbm_lora.adapter import Adapter, load_adapter, save_adapter
from lbm_lora.apply import ScaledAdapter, fuse_module
from lbm_lora.checkpoint import fingerprint, open_checkpoint
from lbm_lora.errors import ConfigError, DataError, MissingExtraError, QualityError, WrongBaseError
from lbm_lora.model.build import load_model
from lbm_lora.train.config import TrainConfig, read_train_config
from lbm_lora.train.fit import Fitted, fit
from lbm_lora.train.preview import look
from lbm_lora.train.state import load_state
from lbm_lora.train.step import BridgeStep
from lbm_lora.train.trainee import read_given

Config = Callable[..., TrainConfig]


class Recorder:
    """A listener that keeps what it hears, and does something at one step."""

    def __init__(self, at: int = 0, action: Callable[[], None] | None = None) -> None:
        self.notes: list[str] = []
        self.phases: list[tuple[int, str]] = []
        self.steps = 0
        self._at, self._action = at, action

    def start(self, total: int, what: str) -> None:
        self.phases.append((total, what))

    def advance(self, n: int = 1) -> None:
        if self.phases[-1][1] == "training":
            self.steps += n
            if self.steps == self._at and self._action:
                self._action()

    def note(self, message: str) -> None:
        self.notes.append(message)


def train(config: TrainConfig, listener: Recorder | None = None) -> Fitted:
    assert config.base_model_path is not None
    return fit(config, config.base_model_path, listener or Recorder())


def same(one: Path, other: Path) -> bool:
    """Whether two adapters have the very same tensors."""
    first, second = tensors(load_adapter(one)), tensors(load_adapter(other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def distance(one: Path, other: Path) -> float:
    """The largest relative distance of two adapters' tensors, Frobenius."""
    first, second = tensors(load_adapter(one)), tensors(load_adapter(other))
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).norm() / first[name].norm()) for name in first)


def tensors(adapter: Adapter) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {f"{name}.up": module.up for name, module in adapter.modules.items()}
    found |= {f"{name}.down": module.down for name, module in adapter.modules.items()}
    return found | {str(name): delta for name, delta in adapter.dense.items()}


def test_a_run_leaves_its_files(config: Config, pairs: Path) -> None:
    chosen = config(validation_folder=pairs, keep_last=1)
    listener = Recorder()
    made = train(chosen, listener)
    folder = chosen.save_ckpt_path
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.safetensors",
        "config.yaml",
        "last.safetensors",
        "pictures",
        "resume.pt",
        "step-000004.safetensors",
    ]
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == [
        "step-000000.png",
        "step-000002.png",
        "step-000004.png",
    ]
    assert read_train_config(folder / "config.yaml") == chosen
    assert same(folder / "last.safetensors", folder / "step-000004.safetensors")
    facts = load_adapter(folder / "last.safetensors").metadata.facts
    assert json.loads(facts["lbm_lora_training"])["step"] == 4
    assert (made.step, made.total, made.stopped_by, made.rank) == (4, 4, "", 0)
    assert made.scores is not None
    best = json.loads(load_adapter(folder / "best.safetensors").metadata.facts["lbm_lora_training"])
    assert made.best_step == best["step"]
    assert listener.phases[-1] == (4, "training")
    assert listener.steps == 4
    assert sum("of 4: loss" in note for note in listener.notes) == 4
    state = load_state(folder / "resume.pt")
    modules = load_adapter(folder / "last.safetensors").modules
    names = {f"{name}.{end}" for name in modules for end in ("lora_down", "lora_up")}
    assert state.values.keys() == state.optimizer.keys() == names
    # 4 bytes for each number, as many for each of AdamW's two averages, and what names and counters take
    assert (folder / "resume.pt").stat().st_size < 12 * made.learning + 1200 * len(names) + 10_000
    with Image.open(folder / "pictures/step-000004.png") as grid:
        assert grid.width > 4 * 256
        assert grid.height > 3 * 256


def test_the_loss_falls_on_the_pairs_that_are_trained_on(config: Config, pairs: Path) -> None:
    listener = Recorder()
    train(config(validation_folder=pairs, max_steps=12, save_interval=12, batch_size=3), listener)
    first, last = (float(n.split("loss ")[1].split(",")[0]) for n in listener.notes if "validation of" in n)
    assert last < 0.8 * first


def test_only_the_selected_modules_of_a_continued_lora_change(config: Config, base_fp32: Path, tmp_path: Path) -> None:
    first = train(config(train_norms=True, train_biases=True, lora_target_modules=("attn1", "conv"))).folder.last
    more = {"lora_weights_path": first, "lora_rank": None, "lora_target_modules": None}
    chosen = config(save_ckpt_path=tmp_path / "more", trainable_lora_modules=("attn1",), **more)
    made = train(chosen)
    before, after = tensors(load_adapter(first)), tensors(load_adapter(made.folder.last))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "attn1" in name and name.endswith((".up", ".down"))}


def test_what_alpha_of_a_continued_lora_means(config: Config, base_fp32: Path, tmp_path: Path) -> None:
    first = load_adapter(train(config(max_steps=1)).folder.last)
    doubled = {name: dataclasses.replace(module, alpha=2 * module.alpha) for name, module in first.modules.items()}
    path = tmp_path / "doubled.safetensors"
    save_adapter(dataclasses.replace(first, modules=doubled), path)
    with open_checkpoint(base_fp32) as checkpoint:
        base = checkpoint.component()
        for alpha_is, scaling in (("auto", 2.0), ("file", 2.0), ("rank", 1.0)):
            chosen = config(lora_weights_path=path, lora_rank=None, lora_target_modules=None, lora_alpha_is=alpha_is)
            given = read_given(chosen, base, fingerprint(base))
            assert given is not None
            assert {module.scaling for module in given.modules.values()} == {scaling}


def test_the_saved_lora_acts_like_the_trained_model(
    config: Config, base_fp32: Path, predict: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[torch.nn.Module] = []
    monkeypatch.setattr(
        "lbm_lora.train.prepare.load_model", lambda *a, **k: held.append((m := load_model(*a, **k)).denoiser) or m
    )
    made = train(config(init_lora="pissa", use_rslora=True, lora_target_modules=None, train_norms=True))
    other = load_model(base_fp32, dtype=torch.float32).denoiser
    fuse_module(other, [ScaledAdapter(load_adapter(made.folder.last))])
    wanted = predict(held[0].eval())
    assert (predict(other) - wanted).abs().max() < 1e-5 * wanted.abs().max()
    with open_checkpoint(base_fp32) as base:
        for name, parameter in held[0].named_parameters():
            if not parameter.requires_grad and not name.endswith(".base_layer.weight"):  # which PiSSA changes
                key = f"denoiser.{name.replace('.base_layer', '')}"
                assert torch.equal(parameter, base.read(key)), name


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        "ema_decay": 0.9,
        "lora_dropout": 0.3,
        "accumulate": 2,
        "learning_rate_scheduler": "cosine",
        "warmup_steps": 2,
        "lora_plus_ratio": 4.0,
        "init_lora": "pissa_niter_2",
        "train_biases": True,
        "train_norms": True,
        "gradient_checkpointing": True,
        "flip": True,
        "mask_key": "mask.png",
        "optimizer": "NAdam",
    },
    "bf16": {
        "precision": "bf16-mixed",
        "base_dtype": "bf16",
        "optimizer": "SGD",
        "optimizer_kwargs": {"momentum": 0.9},
    },
}


@pytest.mark.parametrize(("options", "where"), [("plain", 1), ("plain", 4), ("everything", 4), ("bf16", 1)])
def test_a_stopped_run_goes_on_bit_for_bit(
    config: Config, pairs: Path, tmp_path: Path, options: str, where: int
) -> None:
    values = {"max_steps": 5, "save_interval": 3, **OPTIONS[options]}
    unbroken = train(config(save_ckpt_path=tmp_path / "unbroken", **values))
    chosen = config(save_ckpt_path=tmp_path / "broken", **values)
    broken = train(chosen, Recorder(at=where, action=lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert (broken.step, broken.stopped_by) == (where, "SIGTERM")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    listener = Recorder()
    resumed = train(chosen, listener)
    assert (resumed.step, resumed.stopped_by) == (5, "")
    assert f"the run goes on after step {where}." in listener.notes
    assert same(unbroken.folder.last, resumed.folder.last)
    one, other = load_state(unbroken.folder.state), load_state(resumed.folder.state)
    assert (one.step, one.epoch, one.batch, one.best) == (other.step, other.epoch, other.batch, other.best)
    assert all(torch.equal(one.values[name], other.values[name]) for name in one.values)


def test_a_stop_in_a_validation_saves_and_does_the_validation_later(
    config: Config, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_in_the_second(step: BridgeStep, *arguments: Any) -> Any:
        for number, seen in enumerate(look(step, *arguments)):
            if number == 1 and len(held) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield seen
        held.append(number)

    held: list[int] = []
    values = {"validation_folder": pairs, "max_steps": 3}
    unbroken = train(config(save_ckpt_path=tmp_path / "unbroken", **values))
    chosen = config(save_ckpt_path=tmp_path / "broken", **values)
    monkeypatch.setattr("lbm_lora.train.validation.look", stop_in_the_second)
    broken = train(chosen)
    assert (broken.step, broken.stopped_by, load_state(broken.folder.state).validated) == (2, "SIGTERM", 0)
    monkeypatch.undo()
    listener = Recorder()
    resumed = train(chosen, listener)
    assert [note[:6] for note in listener.notes if "validation of" in note] == ["step 2", "step 3"]
    assert same(unbroken.folder.last, resumed.folder.last)
    assert same(unbroken.folder.best, resumed.folder.best)


def test_a_failure_between_saves_loses_only_the_steps_since(config: Config, tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("the machine went away")

    values = {"max_steps": 5, "save_interval": 2}
    unbroken = train(config(save_ckpt_path=tmp_path / "unbroken", **values))
    chosen = config(save_ckpt_path=tmp_path / "broken", **values)
    with pytest.raises(RuntimeError, match="went away"):
        train(chosen, Recorder(at=3, action=fail))
    listener = Recorder()
    train(chosen, listener)
    assert "the run goes on after step 2." in listener.notes
    assert same(unbroken.folder.last, chosen.save_ckpt_path / "last.safetensors")


def test_a_finished_run_says_so_and_can_be_made_longer(config: Config, tmp_path: Path) -> None:
    train(config(max_steps=2))
    listener = Recorder()
    assert train(config(max_steps=2), listener).step == 2
    assert any("at its end already" in note for note in listener.notes)
    longer = Recorder()
    assert train(config(max_steps=3, learning_rate=1e-3), longer).step == 3
    assert any(
        "changed since its last save: learning_rate: 0.01 -> 0.001, max_steps: 2 -> 3." in n for n in longer.notes
    )


def test_another_run_does_not_go_on(config: Config) -> None:
    train(config(max_steps=2))
    changes: list[tuple[dict[str, Any], str]] = [
        ({"lora_rank": 3}, r"lora_rank is 2 there and 3 now"),
        ({"seed": 1}, r"seed is 0 there and 1 now"),
        ({"batch_size": 3}, r"samples of a forward pass over all processes is 2 there and 3 now"),
        ({"resume": "never"}, r"resume is never, and .* holds a run: step-000002.safetensors, last.safetensors"),
    ]
    for change, message in changes:
        with pytest.raises(ConfigError, match=message):
            train(config(max_steps=3, **change))


def test_a_file_of_the_run_is_no_input_of_it(config: Config) -> None:
    made = train(config(max_steps=2))
    chosen = config(lora_weights_path=made.folder.last, lora_rank=None, lora_target_modules=None)
    with pytest.raises(ConfigError, match=r"last\.safetensors is a file that this run writes"):
        train(chosen)


def test_a_lora_of_another_base_is_refused(config: Config, base_bf16: Path, tmp_path: Path) -> None:
    made = train(config(max_steps=1))
    chosen = config(
        lora_weights_path=made.folder.last,
        lora_rank=None,
        lora_target_modules=None,
        base_model_path=base_bf16,
        save_ckpt_path=tmp_path / "other",
    )
    with pytest.raises(WrongBaseError, match=r"made from another base .* Give its own base\.$"):
        train(chosen)


def test_full_mode_writes_a_checkpoint_that_extract_takes(config: Config, base_fp32: Path, tmp_path: Path) -> None:
    from lbm_lora.workflows.extract import ExtractConfig, run

    made = train(config(mode="full", lora_rank=None, lora_target_modules=None, learning_rate=1e-3, max_steps=2))
    result = run(
        ExtractConfig(base_model_path=base_fp32, tuned_model_path=made.folder.last, save_to=tmp_path / "x.safetensors")
    )
    assert result.report.counts["unchanged"] == 0
    assert result.report.counts["excluded"] == 0


def test_cached_latents_give_the_same_lora(config: Config, tmp_path: Path) -> None:
    cache = {"cache_latents": True, "cache_dir": tmp_path / "cache"}
    plain = train(config(save_ckpt_path=tmp_path / "plain"))
    listener, again = Recorder(), Recorder()
    cached = train(config(save_ckpt_path=tmp_path / "cached", **cache), listener)
    assert (6, "encoding latents") in listener.phases
    assert same(plain.folder.last, cached.folder.last)
    reused = train(config(save_ckpt_path=tmp_path / "again", **cache), again)
    assert (0, "encoding latents") in again.phases
    assert same(cached.folder.last, reused.folder.last)


def test_two_forward_passes_are_one_of_twice_the_batch(config: Config, tmp_path: Path) -> None:
    values = {"shuffle": False, "optimizer": "SGD", "max_steps": 1}
    one = train(config(save_ckpt_path=tmp_path / "one", batch_size=4, **values))
    two = train(config(save_ckpt_path=tmp_path / "two", batch_size=2, accumulate=2, **values))
    assert all(module.up.abs().max() > 0 for module in load_adapter(one.folder.last).modules.values())
    assert distance(one.folder.last, two.folder.last) < 1e-5


def test_the_average_is_what_is_saved(config: Config, tmp_path: Path) -> None:
    plain = train(config(save_ckpt_path=tmp_path / "plain"))
    averaged = train(config(save_ckpt_path=tmp_path / "average", ema_decay=0.5))
    state = load_state(averaged.folder.state)
    assert not same(plain.folder.last, averaged.folder.last)
    assert all(torch.equal(state.values[name], load_state(plain.folder.state).values[name]) for name in state.values)


def test_lpips_in_the_loss_and_as_the_metric(config: Config, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def network(*arguments: Any) -> Callable[[Tensor, Tensor], Tensor]:
        loaded.append(arguments)
        return lambda a, b: (a - b).abs().mean((1, 2, 3))

    loaded: list[Any] = []
    monkeypatch.setattr("lbm_lora.train.prepare.load_lpips", network)
    loss = {"pixel_loss_type": "lpips", "pixel_loss_weight": 2.0, "latent_loss_weight": 0.0, "lpips_net": "alex"}
    made = train(config(validation_folder=pairs, best_metric="lpips", max_steps=2, gradient_checkpointing=True, **loss))
    assert loaded == [("alex", None, torch.device("cpu"))]
    assert made.scores is not None
    assert made.scores.pictures[1].lpips is not None
    # the loss at sigma 1 is twice the distance of the picture after one step, but for the clamp to [-1, 1] before it
    assert made.scores.losses[1000.0] == pytest.approx(2 * made.scores.pictures[1].lpips, rel=1e-3)
    assert made.best_step is not None


def test_csv_log(config: Config, pairs: Path) -> None:
    made = train(config(logger="csv", validation_folder=pairs))
    (path,) = made.folder.logs.rglob("metrics.csv")
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    losses = [row["train/loss"] for row in rows if row["train/loss"]]
    assert len(losses) == 4
    assert any(row["validation/psnr_1"] for row in rows)
    assert "validation/loss_at_250" in rows[0]


def test_tensorboard_log(config: Config, pairs: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = train(config(logger="tensorboard", validation_folder=pairs, max_steps=2))
    events = EventAccumulator(str(made.folder.logs), {"images": 0, "scalars": 0})
    events.Reload()
    assert {"train/loss", "validation/loss", "validation/ssim_2"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Images("validation/pictures")] == [0, 2]


def test_wandb_must_be_installed(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lbm_lora.train.loggers.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="logger wandb needs the package wandb, which is not installed: pip"):
        train(config(logger="wandb", wandb_project="p"))
    assert not (config().save_ckpt_path).exists()


def test_a_loss_that_is_no_number_ends_the_run(config: Config) -> None:
    chosen = config(learning_rate=1e30, gradient_clip=None, optimizer="SGD", max_steps=6, save_interval=100)
    with pytest.raises(QualityError, match=r"the loss is (nan|inf) at step \d: training has come apart"):
        train(chosen)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_dtype": "fp16"}, "base_dtype fp16: training computes in bf16 or fp32"),
        ({"base_dtype": "bf16"}, "precision 32 computes in fp32, and base_dtype bf16"),
        ({"strategy": "no_such"}, "strategy no_such on 1 x 1 cpu: .*no_such"),
        ({"accumulate": 1000}, "do not fill one step of accumulate 1000"),
    ],
)
def test_impossible_settings(config: Config, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(config(max_steps=None, **values))
    assert not config().save_ckpt_path.exists()


def test_corrupt_pairs_are_counted_while_training(config: Config, pairs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    for path in pairs.glob("*.*.png"):
        data = path.read_bytes()
        damaged = path.name in ("1.source.png", "2.source.png", "3.source.png")
        (folder / path.name).write_bytes(data[:400] if damaged else data)  # the header is whole
    assert train(config(train_folder=folder, max_corrupt=1.0, max_steps=3)).step == 3
    with pytest.raises(DataError, match="max_corrupt"):
        train(config(train_folder=folder, max_corrupt=0.2, max_steps=3, save_ckpt_path=tmp_path / "other"))
