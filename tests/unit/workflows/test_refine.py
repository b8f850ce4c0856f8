"""The workflow `refine`: files in, a better file out."""

import dataclasses
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from lbm_lora.adapter import load_adapter, precision_name, save_adapter
from lbm_lora.cli.present import present
from lbm_lora.configs.extract import ExtractConfig
from lbm_lora.configs.refine import RefineConfig
from lbm_lora.errors import ConfigError, OutputError, QualityError, WrongBaseError
from lbm_lora.fidelity.answers import AnsweredPoint
from lbm_lora.imaging.digests import digests_of
from lbm_lora.progress import LbmLoraWarning, Silent
from lbm_lora.workflows.extract import run as extract
from lbm_lora.workflows.refine import run
from standins import TINY, Lbm, write_lbm


@pytest.fixture(scope="module")
def lbm(tmp_path_factory: pytest.TempPathFactory) -> Lbm:
    return write_lbm(tmp_path_factory.mktemp("lbm"), TINY)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index in range(4):
        values = np.random.default_rng(index).uniform(0, 255, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(values).resize((64, 64)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def lora(lbm: Lbm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "l.safetensors"
    extract(
        ExtractConfig(
            base_model_path=lbm.base, tuned_model_path=lbm.tuned, save_to=path, rank=2, conv_rank=16, device="cpu"
        )
    )
    return path


@pytest.fixture
def config(lbm: Lbm, lora: Path, images: Path, tmp_path: Path) -> RefineConfig:
    return RefineConfig(
        base_model_path=lbm.base,
        tuned_model_path=lbm.tuned,
        lora_path=lora,
        images=str(images),
        save_to=tmp_path / "refined.safetensors",
        steps=8,
        batch_size=2,
        learning_rate=0.04,
        timesteps=(1000.0,),
        size=64,
        device="cpu",
    )


def test_the_file_is_better_and_of_the_same_size(config: RefineConfig, lora: Path) -> None:
    result = run(config)
    assert (result.images, result.held) == (3, 1)
    assert result.step > 0
    assert result.after.typical < result.before.typical
    given, made = load_adapter(lora), load_adapter(result.adapter)
    assert made.modules.keys() == given.modules.keys()
    assert made.dense.keys() == given.dense.keys()
    assert all(module.rank == given.modules[name].rank for name, module in made.modules.items())
    assert {module.up.dtype for module in made.modules.values()} == {torch.bfloat16}
    assert made.metadata.base_fingerprint == given.metadata.base_fingerprint
    facts = json.loads(made.metadata.facts["lbm_lora_refinement"])
    learnt = [Path(str(config.images)) / f"{index}.png" for index in (1, 2, 3)]  # the first is measured on
    assert facts["images"].split() == list(digests_of(learnt).each)
    assert facts["error_after"] == pytest.approx(result.after.typical, rel=1e-4)
    assert "lbm_lora_errors" not in made.metadata.facts  # those of the given LoRA's weights
    assert [path.name for path in config.save_to.parent.iterdir()] == ["refined.safetensors"]
    assert "dB better, of step" in present("refine", result)


class Placing(Silent):
    """Puts a file of somebody else at a path: when the work of a name starts, or after its only step."""

    def __init__(self, path: Path, when: str) -> None:
        self.path, self.when, self.what = path, when, ""

    def start(self, total: int, what: str) -> None:
        self.what = what
        if what == self.when:
            self.path.write_text("my work of a week")

    def advance(self, n: int = 1) -> None:
        if f"{self.what}: done" == self.when:
            self.path.write_text("my work of a week")


@pytest.mark.parametrize(("method", "when"), [("adam", "refining: done"), ("joint", "loading the base")])
def test_a_file_of_somebody_else_with_the_states_name_stays(
    config: RefineConfig, method: Literal["adam", "joint"], when: str
) -> None:
    theirs = config.save_to.with_name("refined.refine.pt")
    run(dataclasses.replace(config, method=method, steps=1, mirror=False), Placing(theirs, when))
    assert theirs.read_text() == "my work of a week"


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


@pytest.mark.slow
def test_an_earlier_lora_stays_until_the_run_is_complete(config: RefineConfig, lora: Path) -> None:
    shutil.copy(lora, config.save_to)
    earlier = config.save_to.read_bytes()
    asked = dataclasses.replace(config, steps=2, mirror=False)
    with pytest.raises(Stop):
        run(asked, Stopping())
    assert config.save_to.read_bytes() == earlier
    stored = load_adapter(lora)
    name: Any = precision_name(stored.dtype or next(iter(stored.modules.values())).up.dtype)
    result = run(dataclasses.replace(asked, save_precision=name))  # the same, spelt out
    assert result.step > 0
    assert config.save_to.read_bytes() != earlier
    assert [path.name for path in config.save_to.parent.iterdir()] == ["refined.safetensors"]


@pytest.mark.parametrize("step", [1, 2])
def test_a_run_that_fails_leaves_an_earlier_lora_or_its_best_one_and_no_state(
    config: RefineConfig, lora: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    from lbm_lora.refinement.student import Student

    losses, calls = Student.losses, []

    def failing(student: Student, answered: Sequence[AnsweredPoint]) -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        return losses(student, answered) * (math.nan if calls.count(True) == step else 1)

    monkeypatch.setattr(Student, "losses", failing)
    shutil.copy(lora, config.save_to)
    message = rf"the loss is nan at step {step}: the learning rate 0\.04 is too high\."
    if step == 1:
        with pytest.raises(QualityError, match=message):
            run(dataclasses.replace(config, mirror=False))
    else:
        with pytest.warns(LbmLoraWarning, match=rf"{message}.* The LoRA of step 1, the best so far, was kept\."):
            assert run(dataclasses.replace(config, mirror=False)).step == 1
    assert (config.save_to.read_bytes() == lora.read_bytes()) == (step == 1)
    assert [path.name for path in config.save_to.parent.iterdir()] == ["refined.safetensors"]


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes(config: RefineConfig, tmp_path: Path) -> None:
    other = dataclasses.replace(config, save_to=tmp_path / "again.safetensors", steps=2, mirror=False)
    first = run(dataclasses.replace(other, save_to=config.save_to)).adapter.read_bytes()
    assert run(other).adapter.read_bytes() == first


@pytest.mark.slow
def test_precision_of_the_file(config: RefineConfig) -> None:
    result = run(dataclasses.replace(config, save_precision="float", steps=1))
    assert {module.up.dtype for module in load_adapter(result.adapter).modules.values()} == {torch.float32}


@pytest.mark.slow
def test_a_lora_in_8_bits_stays_one(config: RefineConfig, lora: Path, tmp_path: Path) -> None:
    """Measured as the file holds it: what it is measured at again, as the given one, is what was said."""
    given = tmp_path / "int8.safetensors"
    save_adapter(load_adapter(lora).cast(torch.int8), given)
    asked = dataclasses.replace(config, lora_path=given)
    result = run(asked)
    made = load_adapter(result.adapter)
    assert made.dtype == torch.int8
    assert result.after.typical < result.before.typical
    again = run(dataclasses.replace(asked, lora_path=result.adapter, save_to=tmp_path / "again.safetensors", steps=1))
    assert again.before.typical == pytest.approx(result.after.typical, rel=1e-6)


@pytest.mark.slow
def test_alpha_may_be_taken_as_the_rank(config: RefineConfig, lora: Path, tmp_path: Path) -> None:
    given = load_adapter(lora)
    doubled = {name: dataclasses.replace(module, alpha=2 * module.alpha) for name, module in given.modules.items()}
    save_adapter(dataclasses.replace(given, modules=doubled), tmp_path / "doubled.safetensors")
    asked = dataclasses.replace(config, steps=1)
    expected = run(asked).before.typical
    asked = dataclasses.replace(asked, lora_path=tmp_path / "doubled.safetensors")
    assert run(dataclasses.replace(asked, lora_alpha_is="rank")).before.typical == pytest.approx(expected, rel=1e-6)
    assert run(asked).before.typical > 2 * expected


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"steps": 0}, ConfigError, "steps is 0"),
        ({"batch_size": 0}, ConfigError, "batch_size is 0"),
        ({"learning_rate": 2.0}, ConfigError, "learning_rate is 2"),
        ({"save_to": Path("x.ckpt")}, OutputError, "x.ckpt: a LoRA is a .safetensors file"),
    ],
)
def test_refused(config: RefineConfig, changes: dict[str, object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        run(dataclasses.replace(config, **changes))


def test_inputs_that_do_not_belong_together(config: RefineConfig, lora: Path, images: Path) -> None:
    with pytest.raises(OutputError, match="is an input"):
        run(dataclasses.replace(config, save_to=lora))
    with pytest.raises(ConfigError, match="is only one image"):
        run(dataclasses.replace(config, images=str(images / "0.png")))
    with pytest.raises(ConfigError, match=r"0\.png is in images and in held_images"):
        run(dataclasses.replace(config, held_images=str(images / "0.png")))
    with pytest.raises(WrongBaseError, match="extracted from another tuned model"):
        run(dataclasses.replace(config, tuned_model_path=config.base_model_path))
    with pytest.raises(WrongBaseError, match=r"not the base of .* but the tuned checkpoint"):
        run(dataclasses.replace(config, base_model_path=config.tuned_model_path))


@pytest.mark.slow
def test_a_joint_fit_changes_no_factor_of_a_file_in_8_bits(config: RefineConfig, tmp_path: Path) -> None:
    given = tmp_path / "int8.safetensors"
    save_adapter(load_adapter(config.lora_path).cast(torch.int8), given)
    joint = dataclasses.replace(config, lora_path=given, method="joint", steps=2)
    result = run(joint)
    assert result.step > 0
    assert result.after.typical < result.before.typical
    assert result.nbytes == pytest.approx(given.stat().st_size, abs=2000)  # but for the metadata
    with safe_open(given, "pt") as before, safe_open(result.adapter, "pt") as after:
        names = list(before.keys())
        assert sorted(after.keys()) == sorted(names)
        kept = [name for name in names if name.endswith(".int8")]
        assert kept
        assert all(torch.equal(before.get_tensor(name), after.get_tensor(name)) for name in kept)
        assert any(
            not torch.equal(before.get_tensor(name), after.get_tensor(name))
            for name in names
            if name.endswith(".lora_unit")
        )
    facts = json.loads(load_adapter(result.adapter).metadata.facts["lbm_lora_refinement"])
    assert (facts["method"], facts["steps"]) == ("joint", 2)
    assert "learning_rate" not in facts
