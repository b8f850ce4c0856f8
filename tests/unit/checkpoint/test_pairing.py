"""Base and tuned, parameter by parameter: the subtraction, and the lines that say why two files do not pair."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lbm_lora.checkpoint import Component, Pairing, open_checkpoint, pair
from lbm_lora.errors import PairingError
from lbm_lora.naming import ParamName

Save = Callable[[str, Mapping[str, Tensor]], Path]


@pytest.fixture
def components(save: Save) -> Callable[..., tuple[Component, Component]]:
    def build(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> tuple[Component, Component]:
        paths = save("base.safetensors", base), save("tuned.safetensors", tuned)
        first, second = (open_checkpoint(path).component() for path in paths)
        return first, second

    return build


def error_of(function: Callable[[], object]) -> str:
    with pytest.raises(PairingError) as caught:
        function()
    return str(caught.value)


def delta_of(pairing: Pairing, name: str) -> Tensor:
    return pairing.read_delta(ParamName(name))[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_deltas_are_subtracted_in_fp32(
    components: Callable[..., tuple[Component, Component]], dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(64, 64, generator=generator).to(dtype)
    tuned = (base.float() + 0.01 * torch.randn(64, 64, generator=generator)).to(dtype)
    delta = delta_of(pair(*components({"a": base}, {"a": tuned})), "a")
    exact = tuned.double().numpy() - base.double().numpy()
    assert delta.dtype == torch.float32
    np.testing.assert_array_equal(delta.numpy(), exact.astype(np.float32))
    if dtype != torch.float32:  # subtracting in the storage dtype would have lost bits
        assert not np.array_equal((tuned - base).double().numpy(), exact)


def test_two_kinds_of_file_are_named(components: Callable[..., tuple[Component, Component]]) -> None:
    vae = {"encoder.a": torch.ones(1), "decoder.a": torch.ones(1)}
    base, tuned = components({"model.diffusion_model.a": torch.ones(1)}, vae)
    text = " base.safetensors is a single-file Stable Diffusion checkpoint, tuned.safetensors a VAE alone. Is "
    assert text in error_of(lambda: pair(base, tuned))


def test_tensors_that_stand_on_one_side_only_are_listed(components: Callable[..., tuple[Component, Component]]) -> None:
    names = [f"m{number:02}.weight" for number in range(11)]
    few, many = {"x": torch.ones(1)}, {"x": torch.ones(1), **{name: torch.ones(1) for name in names}}
    base, tuned = components(few, many)
    listed = f"{', '.join(names[:8])} and 3 more"
    ask = "Is base.safetensors a checkpoint of the same network?"
    rest = f"{listed}. {ask} To leave them out: exclude 'm00.weight' and so on."
    text = f"11 of 12 tensors are in the tuned, {tuned.path}, but not in {base.path}: {rest}"
    assert error_of(lambda: pair(base, tuned)) == text
    base, tuned = components(many, few)
    text = f"11 of 12 tensors are in the base, {base.path}, but not in {tuned.path}: {rest}"
    assert error_of(lambda: pair(base, tuned)) == text.replace("Is base.safe", "Is tuned.safe")
    assert len(pair(base, tuned, excluded=frozenset(map(ParamName, names))).pairs) == 1


def test_unequal_shapes_are_shown_with_both_sides(components: Callable[..., tuple[Component, Component]]) -> None:
    base = {"mid_block.attentions.0.proj_in.weight": torch.ones(8, 8).bfloat16()}
    tuned = {"mid_block.attentions.0.proj_in.weight": torch.ones(8, 8, 1, 1).bfloat16()}
    assert error_of(lambda: pair(*components(base, tuned))) == (
        "mid_block.attentions.0.proj_in.weight: base (8, 8) bf16 in base.safetensors, "
        "tuned (8, 8, 1, 1) bf16 in tuned.safetensors. Is this the checkpoint it was tuned from? "
        "To leave it out: exclude 'mid_block.attentions.0.proj_in.weight'."
    )
    base["b"], tuned["b"] = torch.ones(2), torch.ones(3).half()
    text = error_of(lambda: pair(*components(base, tuned)))
    assert (
        " Shapes also differ for b. Is this" in text
        or " also differ for mid_block.attentions.0.proj_in.weight. Is this" in text
    )


@pytest.mark.parametrize("side", ["base", "tuned"])
@pytest.mark.parametrize("bad", [[torch.nan], [torch.inf], [-torch.inf, torch.inf, torch.nan]])
def test_values_that_are_not_finite_are_refused(
    components: Callable[..., tuple[Component, Component]], side: str, bad: list[float]
) -> None:
    good, damaged = torch.ones(1200).bfloat16(), torch.ones(1200).bfloat16()
    damaged[5 : 5 + len(bad)] = torch.tensor(bad)
    base, tuned = components({"a": damaged}, {"a": good}) if side == "base" else components({"a": good}, {"a": damaged})
    path = (base if side == "base" else tuned).path
    assert error_of(lambda: delta_of(pair(base, tuned), "a")) == (
        f"a: {len(bad)} of 1,200 {side} values in {path} are not finite. "
        "Repair the file, or leave the tensor out: exclude 'a'."
    )


def test_a_difference_that_overflows_is_refused(components: Callable[..., tuple[Component, Component]]) -> None:
    pairing = pair(*components({"a": torch.tensor([-3e38])}, {"a": torch.tensor([3e38])}))
    text = "a: tuned - base leaves the range of fp32. To leave it out: exclude 'a'."
    assert error_of(lambda: delta_of(pairing, "a")) == text


def test_every_tensor_that_is_not_finite_is_named(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(3) for name in ("a", "b", "c")}
    save_file(tensors, tmp_path / "base.safetensors")
    save_file(tensors | {name: torch.full((3,), torch.nan) for name in "ac"}, tmp_path / "tuned.safetensors")
    base, tuned = (open_checkpoint(tmp_path / f"{side}.safetensors").component() for side in ("base", "tuned"))
    with pytest.raises(PairingError) as caught:
        pair(base, tuned).read_delta(ParamName("a"))
    assert str(caught.value) == (
        f"a: 3 of 3 tuned values in {tmp_path / 'tuned.safetensors'} are not finite. Other tensors with such values "
        "(1): c. Repair the file, or leave the tensor out: exclude 'a'."
    )
