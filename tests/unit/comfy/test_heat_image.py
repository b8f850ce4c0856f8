"""The heat map of a weight report."""

from lbm_lora.adapter import Status
from lbm_lora.comfy.heat_image import error_image, joint_error
from lbm_lora.fidelity.weights import TensorResult


def row(name: str, error: float, norm: float = 1.0, shape: tuple[int, ...] = (4, 4)) -> TensorResult:
    return TensorResult(
        name=name, status=Status.LORA, reason="", shape=shape, rank=1, relative_error=error, mean_error=0.0,
        relative_mean_error=0.0, delta_norm=norm, error_share=0.0, noise_floor=0.0,
    )  # fmt: skip


def test_errors_of_tensors_are_joined_by_their_norms() -> None:
    assert joint_error([row("a.weight", 0.3, 3.0), row("b.weight", 0.4, 4.0)]) == ((0.9**2 + 1.6**2) / 25) ** 0.5
    assert joint_error([row("a.weight", 0.3, 0.0)]) is None


def test_a_large_error_is_darker_than_a_small_one() -> None:
    rows = [
        row("conv_in.weight", 0.01),
        row("mid_block.resnets.0.conv1.weight", 1.0),
        row("conv_out.bias", 0.1, shape=(4,)),
    ]
    image = error_image(rows)
    colors = {color for _, color in image.getcolors(1 << 20) or []}
    assert {(232, 240, 247), (178, 24, 43)} <= colors  # none left at 1 %, all of it at 100 %
    assert image.height < 400
