"""The terms of the loss against numbers computed by hand."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lbm_lora.model import bridge
from lbm_lora.model.config import LBMConfig
from lbm_lora.training.loss.losses import crop, crop_windows, latent_loss, latent_mask, pixel_loss
from lbm_lora.training.loss.objective import Objective, objective_of, sample_generators
from lbm_lora.training.settings.learning_keys import ObjectiveSettings

L2 = objective_of(ObjectiveSettings(pixel_loss_type="l2", pixel_loss_weight=1), LBMConfig())
L1 = replace(L2, latent_loss_type="l1", pixel_loss_type="l1")
LPIPS = replace(L2, pixel_loss_type="lpips")


def seeded(count: int, seed: int = 0) -> list[torch.Generator]:
    return sample_generators(seed, 0, range(count), "crop")


def test_latent_loss_by_hand() -> None:
    # sample 0 differs by 1, 2, 3, 4; sample 1 by 0, 0, 0, -2
    prediction = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 5.0, 3.0]]).reshape(2, 1, 2, 2)
    velocity = torch.tensor([[0.0] * 4, [5.0] * 4]).reshape(2, 1, 2, 2)
    assert latent_loss(L2, prediction, velocity).tolist() == [7.5, 1.0]
    assert latent_loss(L1, prediction, velocity).tolist() == [2.5, 0.5]


def test_the_loss_does_not_depend_on_the_timestep() -> None:
    """It compares the velocity: an error of 2 there costs 4 at any sigma, though the target latent moves by 2 sigma."""
    source, target = torch.randn(2, 2, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    wrong = bridge.velocity(source, target) + 2
    assert latent_loss(L2, wrong, bridge.velocity(source, target)).tolist() == pytest.approx([4.0, 4.0])


def test_masked_latents_do_not_enter_the_loss() -> None:
    # two channels of 1 x 2 latents, 2 pixels to one: one black pixel under the left one of sample 0
    mask = torch.ones(2, 1, 2, 4)
    mask[0, 0, 1, 0] = 0
    prediction = torch.tensor([[[[9.0, 1.0]], [[9.0, 3.0]]]] * 2)
    loss = latent_loss(L2, prediction, torch.zeros(2, 2, 1, 2), mask)
    # (1 + 9) / 2 valid elements; (81 + 1 + 81 + 9) / 4 elements
    assert loss.tolist() == [5.0, 43.0]


def test_a_sample_without_a_valid_latent_has_loss_0_and_no_gradient() -> None:
    prediction = torch.full((1, 4, 2, 2), 3.0, requires_grad=True)
    loss = latent_loss(L2, prediction, torch.zeros(1, 4, 2, 2), torch.zeros(1, 1, 16, 16))
    assert loss.tolist() == [0.0]
    (gradient,) = torch.autograd.grad(loss.sum(), prediction)
    assert torch.equal(gradient, torch.zeros(1, 4, 2, 2))


def test_the_gradient_by_hand() -> None:
    # d/dp mean((p - v)^2) = 2 (p - v) / n with n = 2 valid elements; l1: sign / n
    mask = torch.ones(1, 1, 1, 3)
    mask[..., 2] = 0
    for objective, expected in ((L2, [1.0, -3.0, 0.0]), (L1, [0.5, -0.5, 0.0])):
        prediction = torch.tensor([1.0, -3.0, 5.0]).reshape(1, 1, 1, 3).requires_grad_()
        loss = latent_loss(objective, prediction, torch.zeros(1, 1, 1, 3), mask)
        assert torch.autograd.grad(loss.sum(), prediction)[0].flatten().tolist() == expected


def test_the_loss_is_fp32_whatever_the_network_computes_in() -> None:
    prediction = torch.full((1, 4, 32, 32), 1.0039062).bfloat16()
    loss = latent_loss(L2, prediction, torch.zeros(1, 4, 32, 32))
    assert loss.dtype == torch.float32
    assert loss.item() == prediction[0, 0, 0, 0].float().item() ** 2


@given(
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    factor=st.sampled_from([1, 2, 8]),
    black=st.lists(st.tuples(st.integers(0, 23), st.integers(0, 23)), max_size=4),
)
def test_a_black_pixel_makes_its_latent_invalid(
    rows: int, columns: int, factor: int, black: list[tuple[int, int]]
) -> None:
    mask = torch.ones(1, 3, rows * factor, columns * factor)
    expected = torch.ones(1, 1, rows, columns, dtype=torch.bool)
    for row, column in black:
        row, column = row % (rows * factor), column % (columns * factor)
        mask[0, 0, row, column] = 0.4
        expected[0, 0, row // factor, column // factor] = False
    mask[:, 1:] = 0  # other planes are not read
    assert torch.equal(latent_mask(mask, rows, columns), expected)


def test_a_mask_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="a mask of 10x8 does not fit latents of 4x4"):
        latent_mask(torch.ones(1, 1, 8, 10), 4, 4)


def test_pixel_loss_by_hand() -> None:
    # clamped: 1, -1, 0.5; target 0: squares 1, 1, 0.25
    decoded = torch.tensor([3.0, -2.0, 0.5]).reshape(1, 1, 1, 3).expand(1, 3, 1, 3)
    target = torch.zeros(1, 3, 1, 3)
    assert pixel_loss(L2, decoded, target, None, seeded(1)).tolist() == [0.75]
    assert pixel_loss(L1, decoded, target, None, seeded(1)).item() == pytest.approx(2.5 / 3)
    mask = torch.tensor([0.0, 1.0, 1.0]).reshape(1, 1, 1, 3)
    assert pixel_loss(L2, decoded, target, mask, seeded(1)).tolist() == [0.625]
    assert pixel_loss(L2, decoded, target, torch.zeros(1, 1, 1, 3), seeded(1)).tolist() == [0.0]


def counting(made: Tensor, wanted: Tensor) -> Tensor:
    """Stands for LPIPS: how much two batches differ, with the axes that the network's own answer has."""
    assert made.shape == wanted.shape
    return (made - wanted).abs().sum((1, 2, 3), keepdim=True)


def test_lpips_gets_clamped_crops_and_grey_where_the_mask_is_black() -> None:
    decoded, target = torch.full((2, 3, 6, 4), 5.0), torch.full((2, 3, 6, 4), -1.0)
    objective = replace(LPIPS, pixel_loss_max_size=4)
    # 3 channels of 4 x 4 pixels that differ by 2
    assert pixel_loss(objective, decoded, target, None, seeded(2), counting).tolist() == [96.0, 96.0]
    mask = torch.ones(2, 1, 6, 4)
    mask[1, :, :, :2] = 0
    assert pixel_loss(objective, decoded, target, mask, seeded(2), counting).tolist() == [96.0, 48.0]


def test_lpips_needs_its_network() -> None:
    with pytest.raises(ValueError, match="pixel_loss_type lpips needs the LPIPS network"):
        pixel_loss(LPIPS, torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8), None, seeded(1))


def test_each_sample_is_cropped_alike_in_both_images() -> None:
    image = torch.rand(3, 3, 20, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mask = torch.ones(3, 1, 20, 24)
    small = replace(L2, pixel_loss_max_size=7)
    assert pixel_loss(small, image, image.clone(), mask, seeded(3)).tolist() == [0.0] * 3
    windows = crop_windows(20, 24, 7, seeded(3))
    assert len({(rows.start, columns.start) for rows, columns in windows}) > 1
    expected = [(image[i, :, rows, columns] ** 2).mean().item() for i, (rows, columns) in enumerate(windows)]
    assert pixel_loss(small, image, torch.zeros(3, 3, 20, 24), None, seeded(3)).tolist() == pytest.approx(expected)


def test_images_cropped_beforehand_are_not_cropped_again() -> None:
    decoded, target = torch.rand(2, 2, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    objective = replace(L1, pixel_loss_max_size=16)
    windows = crop_windows(32, 40, 16, seeded(2))
    before = pixel_loss(objective, crop(decoded, windows), crop(target, windows), None, seeded(2, seed=9))
    assert torch.equal(before, pixel_loss(objective, decoded, target, None, seeded(2)))


@given(
    rows=st.integers(1, 12), columns=st.integers(1, 12), size=st.integers(8, 100), step=st.sampled_from([1, 4, 8]),
    seed=st.integers(0, 50),
)  # fmt: skip
def test_windows_lie_in_the_image_on_the_grid(rows: int, columns: int, size: int, step: int, seed: int) -> None:
    height, width = rows * step, columns * step
    for window in crop_windows(height, width, size, seeded(4, seed), step=step):
        for side, length in zip(window, (height, width), strict=True):
            assert 0 <= side.start < side.stop <= length
            assert side.start % step == side.stop % step == 0
            assert side.stop - side.start == (length if length <= size else size // step * step)


def test_every_window_can_come() -> None:
    starts = {rows.start for rows, _ in crop_windows(32, 8, 16, seeded(200), step=8)}
    assert starts == {0, 8, 16}


def test_latents_are_cropped_with_their_images() -> None:
    latents = torch.arange(32.0).reshape(2, 1, 4, 4)
    images = latents.repeat_interleave(8, 2).repeat_interleave(8, 3)
    windows = crop_windows(32, 32, 16, seeded(2), step=8)
    found = crop(latents, windows, step=8)
    assert found.shape == (2, 1, 2, 2)
    assert torch.equal(found.repeat_interleave(8, 2).repeat_interleave(8, 3), crop(images, windows))


@pytest.mark.parametrize("objective", [L2, L1])
def test_halves_of_a_batch_give_the_gradient_of_the_whole(objective: Objective) -> None:
    """Two processes with half of the samples each, however large their masks are."""
    velocity = torch.randn(4, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 1, 16, 16)
    mask[0, :, :8] = mask[3, :, :, :8] = mask[3, :, 8:] = 0
    weight = torch.tensor(0.5, requires_grad=True)

    def gradient(part: slice) -> Tensor:
        loss = latent_loss(objective, weight * velocity[part], velocity[part], mask[part]).mean()
        return torch.autograd.grad(loss, weight)[0]

    halves = (gradient(slice(0, 2)) + gradient(slice(2, 4))) / 2
    torch.testing.assert_close(halves, gradient(slice(0, 4)), rtol=1e-6, atol=0)
