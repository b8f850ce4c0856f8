"""The states that the network is measured on."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from lbm_lora.calibrate.states import bridge_states, digest_of, generator, random_signs, source_latent
from lbm_lora.errors import ImageError
from lbm_lora.infer.pipeline import encode_sources, to_model_size
from lbm_lora.model import bridge
from lbm_lora.model.build import LBMModel

SCHEDULE = ((1000.0, 0.25), (500.0, 0.75))


def test_the_source_is_that_of_inference(model: LBMModel, pictures: tuple[Path, ...]) -> None:
    for size in (None, 64):
        expected = encode_sources(model, to_model_size(model, Image.open(pictures[1]), size=size))
        assert torch.equal(source_latent(model, pictures[1], size=size), expected)


def test_states_lie_on_the_bridge_to_the_models_own_prediction(model: LBMModel, pictures: tuple[Path, ...]) -> None:
    source = source_latent(model, pictures[0], size=64)
    states = list(bridge_states(model, source, SCHEDULE, seed=3, image=2))
    assert [(timestep, probability) for timestep, probability, _ in states] == list(SCHEDULE)
    assert torch.equal(states[0][2], source)
    with torch.no_grad():
        target = source - model.denoise(source, torch.tensor([1000.0]))
    noise = (states[1][2] - (source + target) / 2) / (0.5 * 0.5)
    expected = bridge.standard_normal(source, [generator(3, 2, 500.0, "noise")])
    assert torch.allclose(noise, expected, atol=1e-4)
    assert not any(state.requires_grad for _, _, state in states)


def test_the_first_timestep_needs_no_target(
    model: LBMModel, pictures: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_latent(model, pictures[0], size=64)
    monkeypatch.setattr(LBMModel, "denoise", lambda *_: pytest.fail("the network was called"))
    ((_, _, state),) = bridge_states(model, source, ((1000.0, 1.0),), seed=0, image=0)
    assert torch.equal(state, source)


def test_noise_depends_on_seed_image_and_timestep(model: LBMModel, pictures: tuple[Path, ...]) -> None:
    source = source_latent(model, pictures[0], size=64)

    def state(seed: int, image: int) -> Tensor:
        return list(bridge_states(model, source, SCHEDULE, seed=seed, image=image))[1][2]

    assert torch.equal(state(0, 1), state(0, 1))
    assert not torch.equal(state(0, 1), state(0, 2))
    assert not torch.equal(state(0, 1), state(1, 1))
    assert generator(0, 1, 500.0, "noise").initial_seed() != generator(0, 1, 250.0, "noise").initial_seed()


def test_probes_are_signs() -> None:
    probe = random_signs((4, 50, 50), generator("probe"))
    assert set(probe.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(probe.mean())) < 0.04
    assert torch.equal(probe, random_signs((4, 50, 50), generator("probe")))


def test_the_digest_is_of_pixels_sizes_and_order(pictures: tuple[Path, ...], tmp_path: Path) -> None:
    Image.open(pictures[0]).save(tmp_path / "same.bmp")
    assert digest_of([tmp_path / "same.bmp", pictures[1]]) == digest_of(pictures[:2])
    assert digest_of([pictures[1], pictures[0]]) != digest_of(pictures[:2])
    flat = Image.open(pictures[1])  # the same bytes as a picture of another shape
    Image.frombytes("RGB", (flat.height, flat.width), flat.tobytes()).save(tmp_path / "turned.png")
    assert digest_of([tmp_path / "turned.png"]) != digest_of([pictures[1]])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"broken\.png is no picture"):
        digest_of([pictures[0], tmp_path / "broken.png"])
