"""Short runs on a small random LBM: what they leave, and that what they leave is what was trained."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from lbm_lora.adapter import load_adapter
from lbm_lora.adapter.twins import write_twins
from lbm_lora.apply import ScaledAdapter, fuse_module
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import DataError, OutputError, QualityError
from lbm_lora.model.build import load_model
from lbm_lora.training.checkpoint import RunFolder, load_state
from lbm_lora.training.settings import TrainConfig, read_train_config
from lbm_lora.training.trainee import trained_steps
from lbm_lora.training.validation import Scores
from lbm_lora.verbs import train as verbs
from nano import Recorder, same, train

pytestmark = pytest.mark.e2e

Config = Callable[..., TrainConfig]


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
    assert (made.standing.step, made.total, made.standing.stopped_by, made.process) == (4, 4, "", 0)
    assert made.standing.scores is not None
    best = json.loads(load_adapter(folder / "best.safetensors").metadata.facts["lbm_lora_training"])
    assert made.standing.best_step == best["step"]
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
    first, last = (float(n.split("loss ")[1].split(",")[0]) for n in listener.notes if "validation on" in n)
    assert last < 0.85 * first  # what is drawn differs between versions of torch


def test_the_saved_lora_acts_like_the_trained_model(
    config: Config, base_fp32: Path, predict: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[torch.nn.Module] = []
    monkeypatch.setattr(
        "lbm_lora.training.prepare.load_model",
        lambda *a, **k: held.append((m := load_model(*a, **k)).denoiser) or m,
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


def test_a_file_of_the_run_is_no_input_of_it(config: Config) -> None:
    made = train(config(max_steps=2))
    chosen = config(lora_weights_path=made.folder.last, lora_rank=None, lora_target_modules=None)
    with pytest.raises(OutputError, match=r"last\.safetensors is an input of this command"):
        verbs.train(chosen.model_dump())


@pytest.mark.parametrize("step", [0, 4])
def test_the_best_lora_by_another_validation_gets_a_name_of_its_own(
    config: Config, pairs: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Also that of the step at which the other validation begins."""
    qualities = itertools.count(0, 1 if step else -1)
    monkeypatch.setattr(Scores, "quality", lambda *_: float(next(qualities)))
    values = {"validation_folder": pairs, "save_interval": 2, "keep_last": 1}
    folder = train(config(max_steps=4, validation_samples=1, **values)).folder
    best = folder.best.read_bytes()
    assert trained_steps(folder.best) == step
    train(config(max_steps=6, validation_samples=2, **values))
    (kept,) = folder.path.glob("best-of-step-*")
    assert (kept.name, kept.read_bytes()) == (f"best-of-step-{step:06d}.safetensors", best)
    assert folder.best.read_bytes() != best
    train(config(max_steps=8, validation_samples=2, **values))
    assert [*folder.path.glob("best-of-step-*")] == [kept]


@pytest.mark.parametrize("name", ["last", "best", "step-000002"])
def test_a_lora_of_somebody_else_stays(config: Config, pairs: Path, name: str) -> None:
    chosen = config(max_steps=2, validation_folder=pairs)
    verbs.train(chosen.model_dump())
    path = chosen.save_ckpt_path / f"{name}.safetensors"
    path.unlink()
    path.write_bytes(b"somebody's")
    with pytest.raises(OutputError, match=rf"{name}\.safetensors exists, and lbm-lora did not write it\."):
        verbs.train(config(max_steps=4, validation_folder=pairs).model_dump())
    assert path.read_bytes() == b"somebody's"


def test_twins_of_the_run_in_the_folder_are_replaced(config: Config) -> None:
    def go_on(steps: int, *, overwrite: bool = False) -> RunFolder:
        chosen = config(max_steps=steps)
        folder = RunFolder(verbs.train(chosen.model_dump(), also=("comfyui",), overwrite=overwrite).folder)
        write_twins(folder.last, ("comfyui",))
        return folder

    folder = go_on(1)
    go_on(2).state.unlink()
    for path in (folder.last, *folder.step_files().values()):
        path.unlink()
    with pytest.raises(OutputError, match=r"last\.comfyui\.safetensors exists, and a training run has saved it"):
        go_on(4)
    go_on(4, overwrite=True)


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


def test_lpips_in_the_loss_and_as_the_metric(config: Config, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def network(*arguments: Any) -> Callable[[Tensor, Tensor], Tensor]:
        loaded.append(arguments)
        return lambda a, b: (a - b).abs().mean((1, 2, 3))

    loaded: list[Any] = []
    monkeypatch.setattr("lbm_lora.training.prepare.load_lpips", network)
    loss = {"pixel_loss_type": "lpips", "pixel_loss_weight": 2.0, "latent_loss_weight": 0.0, "lpips_net": "alex"}
    made = train(config(validation_folder=pairs, best_metric="lpips", max_steps=2, gradient_checkpointing=True, **loss))
    assert loaded == [("alex", None, torch.device("cpu"))]
    assert made.standing.scores is not None
    assert made.standing.scores.images[1].lpips is not None
    # the loss at sigma 1 is twice the distance of the image after one step, but for the clamp to [-1, 1] before it
    assert made.standing.scores.losses[1000.0] == pytest.approx(2 * made.standing.scores.images[1].lpips, rel=1e-3)
    assert made.standing.best_step is not None


def test_a_loss_that_is_no_number_ends_the_run(config: Config) -> None:
    chosen = config(learning_rate=1e30, gradient_clip=None, optimizer="SGD", max_steps=6, save_interval=100)
    with pytest.raises(QualityError, match=r"the loss is (nan|inf) at step \d: .* Nothing was saved before\.$"):
        train(chosen)


def test_values_that_are_no_numbers_are_not_saved(config: Config) -> None:
    """The loss of the only step is that before its update."""
    chosen = config(lora_plus_ratio=1e38, learning_rate=1.0, max_steps=1)
    with pytest.raises(QualityError, match=r"^trained values are infinite or NaN at step 1: .* Nothing was saved"):
        train(chosen)
    assert not list(chosen.save_ckpt_path.rglob("*.safetensors"))
    assert not list(chosen.save_ckpt_path.rglob("resume.pt")), "a state of such values could only go on to diverge"


def test_corrupt_pairs_are_counted_while_training(config: Config, pairs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    for path in pairs.glob("*.*.png"):
        data = path.read_bytes()
        damaged = path.name in ("1.source.png", "2.source.png", "3.source.png")
        (folder / path.name).write_bytes(data[:400] if damaged else data)  # the header is whole
    assert train(config(train_folder=folder, max_corrupt=1.0, max_steps=3)).standing.step == 3
    with pytest.raises(DataError, match="max_corrupt"):
        train(config(train_folder=folder, max_corrupt=0.2, max_steps=3, save_ckpt_path=tmp_path / "other"))
