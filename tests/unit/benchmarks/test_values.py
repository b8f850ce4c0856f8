"""The numbers of the pair are made as the result files say."""

import math

import pytest
import torch

from benchmarks import values

NAME = "denoiser.mid_block.attentions.0.proj_in.weight"


def test_a_weight_has_the_variance_of_its_fan_in() -> None:
    weight = values.weight(NAME, (320, 40, 3, 3), 0)
    assert float(weight.std()) == pytest.approx(1 / math.sqrt(360), rel=0.02)


def test_values_depend_on_seed_and_name_alone() -> None:
    shape = (40, 50)
    for make in (values.weight, values.delta):
        assert torch.equal(make(NAME, shape, 0), make(NAME, shape, 0))
        assert not torch.equal(make(NAME, shape, 0), make(NAME, shape, 1))
        assert not torch.equal(make(NAME, shape, 0), make("other.weight", shape, 0))


def test_a_delta_has_its_share_of_the_weights_norm() -> None:
    shape = (256, 384)
    share = values.delta(NAME, shape, 0).norm() / values.weight(NAME, shape, 0).norm()
    assert float(share) == pytest.approx(values.DELTA_SHARE, rel=0.03)


def test_the_spectrum_falls_as_its_power_over_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "NOISE_ENERGY", 0.0)
    singular = torch.linalg.svdvals(values.delta(NAME, (300, 400), 0).double())
    index = torch.arange(1, values.COLUMNS + 1, dtype=torch.float64)
    expected = singular[0] * index ** -values.power_of(NAME, 0)
    torch.testing.assert_close(singular[: values.COLUMNS], expected, rtol=1e-4, atol=0)
    assert float(singular[values.COLUMNS]) < 1e-5 * float(singular[0])


def test_noise_has_its_share_of_the_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = values.delta(NAME, (300, 400), 0)
    monkeypatch.setattr(values, "NOISE_ENERGY", 0.0)
    falling = values.delta(NAME, (300, 400), 0) * math.sqrt(0.7)
    share = (whole - falling).square().sum() / whole.square().sum()
    assert float(share) == pytest.approx(0.3, rel=0.03)


def test_powers_differ_by_layer_and_stay_in_their_range() -> None:
    powers = {values.power_of(f"layer.{index}.weight", 0) for index in range(50)}
    low, high = values.POWERS
    assert len(powers) > 40
    assert all(low <= power <= high for power in powers)


@pytest.mark.parametrize("shape", [(4, 36), (7,), ()])
def test_small_tensors_are_made_too(shape: tuple[int, ...]) -> None:
    assert values.weight("a.bias", shape, 0).shape == shape
    assert values.delta("a.bias", shape, 0).shape == shape
