"""A LoRA that learns another network's outputs."""

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from lbm_lora.adapter import Adapter, LoraModule
from lbm_lora.apply import ScaledAdapter, fuse_module
from lbm_lora.errors import ConfigError, QualityError
from lbm_lora.fidelity.answers import AnsweredPoint
from lbm_lora.fidelity.points import Point
from lbm_lora.model.build import LBMModel, load_model
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.progress import LbmLoraWarning
from lbm_lora.refinement import distill as work
from lbm_lora.refinement.distill import DistillResult, DistillSettings, distill, refuse_another
from lbm_lora.refinement.student import Student
from standins import TINY, write_base

MODULES = ("mid_block.attentions.0.proj_in", "conv_in", "up_blocks.2.resnets.0.conv1")
SETTINGS = DistillSettings(steps=16, batch_size=2, learning_rate=0.05, seed=0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("tiny"), TINY, dtype=torch.float32)


def model_of(base: Path) -> LBMModel:
    return load_model(base, dtype=torch.float32)


def lora(base: Path, seed: int, dtype: torch.dtype = torch.bfloat16) -> Adapter:
    """Rank 2 on three modules, and a bias."""
    draw = torch.Generator().manual_seed(seed)
    modules: dict[ModuleName, LoraModule] = {}
    for name in map(ModuleName, MODULES):
        weight = model_of(base).denoiser.get_submodule(name).weight
        assert isinstance(weight, torch.Tensor)
        up = 0.3 * torch.randn(weight.shape[0], 2, *(1 for _ in weight.shape[2:]), generator=draw)
        down = 0.3 * torch.randn(2, *weight.shape[1:], generator=draw)
        modules[name] = LoraModule(name, down.to(dtype), up.to(dtype), 2.0)
    bias = ParamName("conv_in.bias")
    dense = {bias: 0.1 * torch.randn(model_of(base).denoiser.get_parameter(bias).shape, generator=draw).to(dtype)}
    return Adapter(modules, dense, prefix="denoiser.")


def lessons(base: Path, adapter: Adapter, seeds: Sequence[int], side: int = 8) -> list[AnsweredPoint]:
    """What base + adapter says to noise."""
    model = model_of(base)
    fuse_module(model.denoiser, [ScaledAdapter(adapter)])
    found: list[AnsweredPoint] = []
    for seed in seeds:
        state = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(seed))
        timestep = (250.0, 1000.0)[seed % 2]
        with torch.no_grad():
            wanted = model.denoise(state, torch.tensor([timestep]))
        found.append(AnsweredPoint(point=Point(timestep=timestep, probability=0.5, state=state), wanted=wanted))
    return found


@pytest.mark.slow
def test_a_disturbed_lora_finds_back(base: Path, tmp_path: Path) -> None:
    true, other = lora(base, 0), lora(base, 1)
    mixed = {
        name: dataclasses.replace(module, up=module.up + 0.1 * other.modules[name].up)
        for name, module in true.modules.items()
    }
    given = dataclasses.replace(true, modules=mixed)
    taught, held = lessons(base, true, range(12)), lessons(base, true, range(100, 104))
    best, refined = distill(
        Student(model_of(base), given, torch.float32),
        taught,
        held,
        dataclasses.replace(SETTINGS, steps=48),
        state=tmp_path / "s.pt",
        identity={},
    )
    assert refined.gain > 6
    assert refined.after.worst < refined.before.worst
    # what is returned is what was measured
    model = model_of(base)
    fuse_module(model.denoiser, [ScaledAdapter(best)])
    with torch.no_grad():
        errors = [
            float((model.denoise(x.point.state, torch.tensor([x.point.timestep])) - x.wanted).norm() / x.wanted.norm())
            for x in held
        ]
    assert math.exp(sum(map(math.log, errors)) / len(errors)) == pytest.approx(refined.after.typical, rel=1e-3)
    assert max(errors) == pytest.approx(refined.after.worst, rel=1e-3)
    assert {name: module.rank for name, module in best.modules.items()} == dict.fromkeys(true.modules, 2)
    assert not torch.equal(best.dense[ParamName("conv_in.bias")], given.dense[ParamName("conv_in.bias")].float())


def test_the_given_lora_is_kept_where_nothing_is_better(base: Path, tmp_path: Path) -> None:
    true = lora(base, 0)
    best, refined = distill(
        Student(model_of(base), true, torch.bfloat16),
        lessons(base, lora(base, 1), range(4)),  # of another teacher
        lessons(base, true, range(100, 102)),
        SETTINGS,
        state=tmp_path / "s.pt",
        identity={},
    )
    assert refined.step == 0
    assert refined.gain == 0
    for name, module in true.modules.items():
        assert torch.equal(best.modules[name].up, module.up)
        assert torch.equal(best.modules[name].down, module.down)
    assert best.modules[ModuleName("conv_in")].up.dtype == torch.bfloat16


class Stop(Exception):
    pass


class Counting(Student):
    """Counts its steps, and ends a run that takes more of them than it may."""

    steps, may_take = 0, 1000

    def losses(self, answered: Sequence[AnsweredPoint]) -> torch.Tensor:
        if torch.is_grad_enabled():
            self.steps += 1
            if self.steps > self.may_take:
                raise Stop
        return super().losses(answered)


@pytest.mark.parametrize(("learning_rate", "part"), [(0.05, 1.0), (0.5, 0.01)])
def test_a_stopped_run_ends_the_same(base: Path, tmp_path: Path, learning_rate: float, part: float) -> None:
    """Also where the best LoRA is from before the stop: one that is to learn a part of the change learns too much."""
    true, given = lora(base, 0), lora(base, 1)
    dense = {name: torch.lerp(delta.float(), true.dense[name].float(), part) for name, delta in given.dense.items()}
    mixed = {
        name: dataclasses.replace(module, up=torch.lerp(module.up.float(), true.modules[name].up.float(), part))
        for name, module in given.modules.items()
    }
    wanted = true if part == 1 else dataclasses.replace(given, modules=mixed, dense=dense)
    taught, held = lessons(base, true, range(8)), lessons(base, wanted, range(100, 102))
    settings = dataclasses.replace(SETTINGS, learning_rate=learning_rate)

    def whole(state: Path, student: Student) -> tuple[Adapter, DistillResult]:
        return distill(student, taught, held, settings, state=state, identity={"a": 1})

    unbroken, first = whole(tmp_path / "a.pt", Student(model_of(base), given, torch.float32))
    stopping = Counting(model_of(base), given, torch.float32)
    stopping.may_take = 9  # it stops in the step after the fourth of eight measurements
    with pytest.raises(Stop):
        whole(tmp_path / "b.pt", stopping)
    resumed = Counting(model_of(base), given, torch.float32)
    broken, second = whole(tmp_path / "b.pt", resumed)
    assert resumed.steps == 8
    assert first == second
    assert first.step > 8 if part == 1 else 0 < first.step < 9
    for name, module in unbroken.modules.items():
        assert torch.equal(module.up, broken.modules[name].up)
        assert torch.equal(module.down, broken.modules[name].down)


Damage = Callable[[dict[str, Any]], None]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda held: held["config"].update(typical=math.nan), "the errors of its LoRA are not two numbers"),
        (lambda held: held.update(best_step=9), "its step is 8 of 8"),
        (lambda held: held.update(average=None), "it holds no best LoRA"),
        (
            lambda held: held["optimizer"]["conv_in.bias"].update(exp_avg=torch.zeros(3)),
            "what Adam has kept for conv_in",
        ),
        (lambda held: held["optimizer"]["conv_in.bias"]["exp_avg_sq"].fill_(-1), "what Adam has kept"),
    ],
)
def test_a_damaged_state_is_said_to_be(
    made_state: dict[str, Any], base: Path, tmp_path: Path, damage: Damage, message: str
) -> None:
    held = copy.deepcopy(made_state)
    damage(held)
    torch.save(held, tmp_path / "s.pt")
    with pytest.raises(ConfigError, match=rf"s\.pt is damaged: {message}.* Remove it to start again\."):
        refine(base, tmp_path / "s.pt")
    assert (tmp_path / "s.pt").exists()


@cache
def taught_and_given(base: Path) -> tuple[list[AnsweredPoint], Adapter]:
    return lessons(base, lora(base, 0), range(1)), lora(base, 1)


def refine(base: Path, state: Path) -> None:
    taught, given = taught_and_given(base)
    student = Student(model_of(base), given, torch.float32)
    settings = DistillSettings(steps=8, batch_size=1, learning_rate=0.05, seed=0)
    distill(student, taught, taught, settings, state=state, identity={})


@pytest.fixture(scope="module")
def made_state(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("state") / "s.pt"
    refine(base, path)
    return torch.load(path)


def test_the_state_of_another_run_is_refused(base: Path, tmp_path: Path) -> None:
    true = lora(base, 0)
    student = Student(model_of(base), lora(base, 1), torch.float32)
    state, held = tmp_path / "s.pt", lessons(base, true, range(100, 101))
    refuse_another(state, {})
    settings = dataclasses.replace(SETTINGS, steps=8)
    distill(student, held, held, settings, state=state, identity={"a": 1})
    refuse_another(state, {"a": 1})
    with pytest.raises(ConfigError, match=r"s\.pt is the state of an interrupted refinement with other inputs"):
        refuse_another(state, {"a": 2})


def test_the_best_lora_of_a_run_that_diverges_later_is_kept(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true, given, take = lora(base, 0), lora(base, 1), work._take

    def diverging(*arguments: Any) -> None:
        if arguments[-1] == 12:
            raise QualityError("the loss is nan.")
        take(*arguments)

    def distilled() -> tuple[Adapter, DistillResult]:
        student = Student(model_of(base), given, torch.float32)
        points = lessons(base, true, range(4)), lessons(base, true, range(100, 102))
        return distill(student, *points, SETTINGS, state=None, identity={})

    monkeypatch.setattr(work, "_take", diverging)
    with pytest.warns(LbmLoraWarning, match=r"^the loss is nan\. The LoRA of step \d+, the best so far, was kept\.$"):
        _, result = distilled()
    assert 0 < result.step <= 12
    assert result.after.typical < result.before.typical
