"""A LoRA tried in memory against the models built from files."""

from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from two_levels import translate

from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.extraction import DeltaSettings, DirectPass, Plan, plan_extraction
from lbm_lora.factorize import FixedRank
from lbm_lora.fidelity.checks import Check
from lbm_lora.fidelity.points import Point
from lbm_lora.fidelity.trial import LoraTrial
from lbm_lora.imaging.buckets import to_bucket
from lbm_lora.imaging.metrics import psnr
from lbm_lora.model.build import LBMModel, load_model
from standins import Lbm

FP32 = DeltaSettings(dtype=torch.float32)


class Listener:
    """A progress that keeps what was begun, and counts."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.missing = 0

    def start(self, total: int, what: str) -> None:
        self.begun.append(what)
        self.missing = total

    def advance(self, n: int = 1) -> None:
        self.missing -= n

    def note(self, message: str) -> None: ...


def point(timestep: float, probability: float) -> Point:
    draw = torch.Generator().manual_seed(int(timestep))
    return Point(timestep=timestep, probability=probability, state=torch.randn(1, 4, 8, 8, generator=draw))


POINTS = (point(1000.0, 0.7), point(500.0, 0.3))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "a.png"
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


@pytest.fixture
def plan(lbm: Lbm) -> Generator[Plan]:
    with open_checkpoint(lbm.base) as base, open_checkpoint(lbm.tuned) as tuned:
        yield plan_extraction(base.component(), tuned.component(), FixedRank(linear=9999, conv=9999))


def trial(lbm: Lbm, plan: Plan, listener: Listener, **changes: object) -> LoraTrial:
    settings = {"checks": checks(lbm), "images": (), "config_path": None, "device": torch.device("cpu")}
    return LoraTrial(lbm.tuned, plan.pairing.base, progress=listener, **(settings | changes))  # pyright: ignore


def checks(lbm: Lbm) -> list[Check]:
    """Both points, with the tuned model's outputs; the second also as a shifted one, with the output doubled."""
    wanted = outputs(load_model(lbm.tuned, dtype=torch.float32))
    found = [Check(kind="held", point=one, wanted=output) for one, output in zip(POINTS, wanted, strict=True)]
    return [*found, Check(kind="content", point=POINTS[1], wanted=2 * wanted[1])]


def error_of(tried: LoraTrial) -> float:
    found = tried.error()
    assert found is not None
    return found.typical


def outputs(model: LBMModel) -> list[Tensor]:
    with torch.no_grad():
        return [model.denoise(one.state, torch.tensor([one.timestep])) for one in POINTS]


def test_every_delta_makes_the_tuned_model_and_fewer_do_not(lbm: Lbm, plan: Plan) -> None:
    tried = trial(lbm, plan, Listener())
    found: list[float] = []
    for ranks in (FixedRank(linear=9999, conv=9999), FixedRank(linear=1, conv=1)):
        tried.take(outcome.stored() for (outcome,) in DirectPass([plan.with_ranks(ranks)], FP32))
        found.append(error_of(tried))
    tried.take()
    whole, little, nothing = *found, error_of(tried)
    assert whole < 1e-4 < little < nothing


def test_a_large_network_gives_the_same_errors_with_its_weights_in_the_file(
    lbm: Lbm, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = [outcome for (outcome,) in DirectPass([plan.with_ranks(FixedRank(linear=2, conv=1))], FP32)]
    whole = trial(lbm, plan, Listener())
    monkeypatch.setattr("lbm_lora.model.build.LARGE", 0)
    listener = Listener()
    streamed = trial(lbm, plan, listener)
    for deltas in ((), [one.stored() for one in outcomes]):
        for tried in (whole, streamed):
            tried.take(deltas)
        assert error_of(streamed) == pytest.approx(error_of(whole), rel=1e-4)
        assert listener.missing == 0
    assert sum(one.numel() for one in streamed._model.denoiser.parameters()) == 0  # pyright: ignore[reportPrivateUsage]


def test_images_are_those_of_inference(lbm: Lbm, plan: Plan, image: Path) -> None:
    tuned, base = (load_model(path, dtype=torch.float32) for path in (lbm.tuned, lbm.base))
    source = to_bucket(Image.open(image), tuned.size, step=tuned.pixels_per_latent)
    expected = psnr(translate(base, source)[0], translate(tuned, source)[0])
    tried = trial(lbm, plan, Listener(), checks=(), images=(image,))
    tried.take()
    found = tried.images()
    assert found is not None
    assert (found.worst_image, found.worst_psnr) == ("a.png", pytest.approx(expected, rel=1e-4))
    assert tried.error() is None
