"""`refine`: a better LoRA of the same size."""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lbm_lora.adapter import load_adapter, save_adapter
from lbm_lora.errors import ConfigError, OutputError, QualityError, WrongBaseError
from lbm_lora.fidelity.answers import AnsweredPoint
from lbm_lora.imaging.digests import digests_of
from lbm_lora.progress import LbmLoraWarning, Silent
from lbm_lora.verbs.adapters import RefinedAdapter
from lbm_lora.verbs.extract import extract
from lbm_lora.verbs.refine import refine
from standins import Lbm

Run = Callable[..., RefinedAdapter]


@pytest.fixture(scope="module")
def images(write_images: Callable[[int], Path]) -> Path:
    return write_images(4)


@pytest.fixture(scope="module")
def lora(lbm: Lbm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "l.safetensors"
    extract(lbm.base, lbm.tuned, save_to=path, rank=2, conv_rank=16)
    return path


@pytest.fixture
def run(lbm: Lbm, images: Path, tmp_path: Path) -> Run:
    """`run(lora, steps=8)`: the refined LoRA, in a file of its own folder."""
    path = tmp_path / "out" / "refined.safetensors"
    fast: dict[str, Any] = {"batch_size": 2, "timesteps": 1000.0, "size": 64, "mirror": False, "steps": 8}
    fast |= {"images": images, "save_to": path, "base": lbm.base, "tuned": lbm.tuned}
    return lambda lora, **changes: refine(lora=lora, **(fast | changes))


def test_the_file_is_better_and_of_the_same_size(run: Run, lora: Path, images: Path) -> None:
    made, given = run(lora), load_adapter(lora)
    assert made.outcome.step > 0
    assert made.outcome.after.typical < made.outcome.before.typical
    assert made.modules.keys() == given.modules.keys()
    assert made.dense.keys() == given.dense.keys()
    assert all(module.rank == given.modules[name].rank for name, module in made.modules.items())
    assert {module.up.dtype for module in made.modules.values()} == {torch.bfloat16}
    assert made.metadata.base_fingerprint == given.metadata.base_fingerprint
    facts = json.loads(made.metadata.facts["lbm_lora_refinement"])
    learnt = [images / f"{index}.png" for index in (1, 2, 3)]  # the first is measured on
    assert facts["images"].split() == list(digests_of(learnt).each)
    assert facts["error_after"] == pytest.approx(made.outcome.after.typical, rel=1e-4)
    assert "lbm_lora_errors" not in made.metadata.facts  # those of the given LoRA's weights
    assert made.path is not None
    assert [path.name for path in made.path.parent.iterdir()] == ["refined.safetensors"]
    kept = run(lora, save_to=None)
    assert kept.outcome == made.outcome
    assert kept.path is None


class Stop(Exception):
    pass


class Stopping(Silent):
    """Ends the run in its last step, after the state was saved."""

    left = 0

    def start(self, total: int, what: str) -> None:
        self.left = total if what == "refining" else 0

    def advance(self, n: int = 1) -> None:
        self.left -= n
        if self.left == 0:
            raise Stop


def test_an_earlier_lora_stays_until_a_stopped_run_is_complete(run: Run, lora: Path, tmp_path: Path) -> None:
    path = tmp_path / "refined.safetensors"
    shutil.copy(lora, path)
    run = partial(run, lora, steps=2, save_to=path)
    with pytest.raises(Stop):
        run(progress=Stopping())
    assert path.read_bytes() == lora.read_bytes()
    with pytest.raises(ConfigError, match=r"refined\.refine\.pt is the state of an interrupted refinement with other"):
        run(seed=5)
    assert run(save_precision="bf16").outcome.step > 0  # the same, spelt out
    resumed = path.read_bytes()
    assert [one.name for one in tmp_path.iterdir() if one.is_file()] == ["refined.safetensors"]
    run()
    assert path.read_bytes() == resumed


@pytest.mark.parametrize("step", [1, 2])
def test_a_run_that_fails_leaves_an_earlier_lora_or_its_best_one_and_no_state(
    run: Run, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    from lbm_lora.refinement.student import Student

    losses, calls = Student.losses, []

    def failing(student: Student, answered: Sequence[AnsweredPoint]) -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        return losses(student, answered) * (math.nan if calls.count(True) == step else 1)

    monkeypatch.setattr(Student, "losses", failing)
    path = tmp_path / "refined.safetensors"
    shutil.copy(lora, path)
    message = rf"the loss is nan at step {step}: the learning rate 0\.04 is too high\."
    if step == 1:
        with pytest.raises(QualityError, match=message):
            run(lora, save_to=path)
    else:
        with pytest.warns(LbmLoraWarning, match=rf"{message}.* The LoRA of step 1, the best so far, was kept\."):
            assert run(lora, save_to=path).outcome.step == 1
    assert (path.read_bytes() == lora.read_bytes()) == (step == 1)
    assert [one.name for one in tmp_path.iterdir() if one.is_file()] == ["refined.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adam", "joint"])
def test_a_lora_in_8_bits_stays_one(run: Run, lora: Path, tmp_path: Path, method: str) -> None:
    """Measured as the file holds it: what it is measured at again, as the given one, is what was said."""
    given = tmp_path / "int8.safetensors"
    save_adapter(load_adapter(lora).cast(torch.int8), given)
    made = run(given, method=method, steps=8 if method == "adam" else 2)
    assert made.dtype == torch.int8
    assert made.outcome.after.typical < made.outcome.before.typical
    again = run(made, save_to=None, steps=1)
    assert again.outcome.before.typical == pytest.approx(made.outcome.after.typical, rel=1e-6)


@pytest.mark.slow
def test_alpha_may_be_taken_as_the_rank(run: Run, lora: Path, tmp_path: Path) -> None:
    given = load_adapter(lora)
    doubled = {name: dataclasses.replace(module, alpha=2 * module.alpha) for name, module in given.modules.items()}
    save_adapter(dataclasses.replace(given, modules=doubled), tmp_path / "doubled.safetensors")
    once = partial(run, steps=1, save_to=None)
    expected = once(lora).outcome.before.typical
    as_rank = once(tmp_path / "doubled.safetensors", lora_alpha_is="rank").outcome.before.typical
    assert as_rank == pytest.approx(expected, rel=1e-6)
    assert once(tmp_path / "doubled.safetensors").outcome.before.typical > 2 * expected


def test_refused(run: Run, lbm: Lbm, lora: Path, images: Path) -> None:
    for changes, error, text in (
        ({"steps": 0}, ConfigError, "^steps must be greater than or equal to 1, got 0"),
        ({"learning_rate": 2.0}, ConfigError, "^learning_rate is 2"),
        ({"save_to": "x.ckpt"}, OutputError, "x.ckpt: a LoRA is a .safetensors file"),
        ({"save_to": lora}, OutputError, "is an input"),
        ({"images": images / "0.png"}, ConfigError, "is only one image"),
        ({"held_images": images / "0.png"}, ConfigError, r"0\.png is in images and in held_images"),
        ({"tuned": lbm.base}, WrongBaseError, "extracted from another tuned model"),
        ({"base": lbm.tuned}, WrongBaseError, r"not the base of .* but the tuned checkpoint"),
    ):
        with pytest.raises(error, match=text):
            run(lora, **changes)
