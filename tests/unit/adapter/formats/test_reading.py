"""Foreign files read completely: what is rebuilt gives the weights that the writer's own formulas give."""

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, load_adapter
from lbm_lora.checkpoint import Component, open_checkpoint
from lbm_lora.errors import AdapterError
from lbm_lora.naming import ModuleName, ParamName

Rand = Callable[..., Tensor]
CONV1 = "lora_unet_output_blocks_1_0_in_layers_2"
M = ModuleName("up_blocks.0.resnets.1.conv1")
TO_Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT = "lora_unet_" + TO_Q.replace(".", "_")


def delta(adapter: Adapter, name: str) -> Tensor:
    found = adapter.delta(ParamName(f"{name}.weight"))
    assert found is not None
    return found


def base_of(tensors: Mapping[str, Tensor]) -> Component:
    return open_checkpoint({f"denoiser.{key}": tensor for key, tensor in tensors.items()}).component()


def error_of(tensors: Mapping[str, Tensor], base: Component | None = None) -> str:
    with pytest.raises(AdapterError) as caught:
        load_adapter(tensors, base=base)
    return str(caught.value)


def test_tucker_factors_are_merged(rand: Rand) -> None:
    up, mid, down = rand(6, 2, 1, 1), rand(2, 2, 3, 3), rand(2, 5, 1, 1)
    tensors = {f"{CONV1}.lora_{name}.weight": t for name, t in (("up", up), ("mid", mid), ("down", down))}
    with pytest.warns(UserWarning, match="1 module of Tucker factors: rebuilt exactly"):
        found = load_adapter(tensors | {f"{CONV1}.alpha": torch.tensor(1.0)})
    assert (found.modules[M].rank, found.modules[M].alpha) == (2, 1.0)
    expected = 0.5 * torch.einsum("om,mnkl,ni->oikl", up[..., 0, 0], mid, down[..., 0, 0])
    torch.testing.assert_close(delta(found, M), expected)


def test_loha_becomes_factors_in_the_modules_own_kernel(rand: Rand) -> None:
    parts = {"w1_a": rand(6, 1), "w1_b": rand(1, 45), "w2_a": rand(6, 1), "w2_b": rand(1, 45)}
    with pytest.warns(UserWarning, match="1 module of LoHa"):
        found = load_adapter({f"{CONV1}.hada_{n}": t for n, t in parts.items()} | {f"{CONV1}.alpha": torch.tensor(3.0)})
    assert found.modules[M].shape == (6, 5, 3, 3)
    expected = 3 * (parts["w1_a"] @ parts["w1_b"]) * (parts["w2_a"] @ parts["w2_b"])
    torch.testing.assert_close(delta(found, M), expected.reshape(6, 5, 3, 3))


def test_lokr_of_a_high_rank_becomes_a_dense_delta(rand: Rand) -> None:
    """Without factors its alpha counts for nothing, as in LyCORIS."""
    one, two = rand(2, 2), rand(4, 3)
    with pytest.warns(UserWarning, match="1 module of LoKr"):
        found = load_adapter({f"{FLAT}.lokr_w1": one, f"{FLAT}.lokr_w2": two, f"{FLAT}.alpha": torch.tensor(9.0)})
    assert not found.modules
    torch.testing.assert_close(delta(found, TO_Q), torch.kron(one, two))


def test_lokr_with_factors_is_scaled_by_their_rank(rand: Rand) -> None:
    one, left, right = rand(1, 2), rand(40, 2), rand(2, 30)
    tensors = {f"{FLAT}.lokr_w1": one, f"{FLAT}.lokr_w2_a": left, f"{FLAT}.lokr_w2_b": right}
    with pytest.warns(UserWarning, match="LoKr"):
        found = load_adapter(tensors | {f"{FLAT}.alpha": torch.tensor(3.0)})
    assert found.modules[ModuleName(TO_Q)].rank == 2
    torch.testing.assert_close(delta(found, TO_Q), 1.5 * torch.kron(one, left @ right))


def test_convolutions_of_an_early_implementation_are_turned_around(rand: Rand) -> None:
    """Its up is (rank, in, kh, kw) and its down (out, rank, 1, 1); so are those of 1x1 convs. Matrices are not."""
    up, down, first, second = rand(4, 2), rand(2, 3), rand(2, 5, 3, 3), rand(6, 2, 1, 1)
    short_up, short_down = rand(2, 5, 1, 1), rand(6, 2, 1, 1)
    shortcut = "lora_unet_up_blocks_0_resnets_0_conv_shortcut"
    conv = "lora_unet_up_blocks_0_resnets_1_conv1"
    found = load_adapter(
        {
            f"{FLAT}.lora_up.weight": up, f"{FLAT}.lora_down.weight": down,
            f"{conv}.lora_up.weight": first, f"{conv}.lora_down.weight": second,
            f"{shortcut}.lora_up.weight": short_up, f"{shortcut}.lora_down.weight": short_down,
        }
    )  # fmt: skip
    torch.testing.assert_close(delta(found, TO_Q), up @ down)
    expected = torch.einsum("or,rikl->oikl", second[..., 0, 0], first)
    torch.testing.assert_close(delta(found, M), expected)
    assert found.modules[ModuleName("up_blocks.0.resnets.0.conv_shortcut")].shape == (6, 5, 1, 1)


def test_projections_stored_as_convolutions_become_matrices(rand: Rand) -> None:
    up, down = rand(6, 2, 1, 1), rand(2, 5, 1, 1)
    key = "lora_unet_middle_block_1_proj_in"
    found = load_adapter({f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down})
    torch.testing.assert_close(delta(found, "mid_block.attentions.0.proj_in"), up[..., 0, 0] @ down[..., 0, 0])


def test_text_encoders_are_left_out_with_a_note(rand: Rand) -> None:
    text = {"lora_te1_text_model_a.lora_up.weight": rand(4, 2), "lora_te1_text_model_a.lora_down.weight": rand(2, 3)}
    unet = {f"{FLAT}.lora_up.weight": rand(4, 2), f"{FLAT}.lora_down.weight": rand(2, 3)}
    with pytest.warns(UserWarning, match=r"2 keys left out, .*: lora_te1_text_model_a\.lora_up\.weight, "):
        assert list(load_adapter(unet | text).modules) == [TO_Q]
    assert error_of(text).startswith("the state dict holds a LoRA of text encoders alone: lora_te1_text_model_a.")


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("prefix", ["lora_unet_", "denoiser.", "diffusion_model."])
def test_a_dora_is_read_with_its_base(rand: Rand, axis: int, prefix: str) -> None:
    key = FLAT if prefix == "lora_unet_" else prefix + TO_Q
    up, down, weight = rand(4, 2), rand(2, 3), rand(4, 3)
    magnitude = rand(4, 1).abs() if axis == 0 else rand(1, 3).abs()
    tensors = {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down, f"{key}.dora_scale": magnitude}
    assert error_of(tensors) == (
        f"the state dict: {TO_Q}.weight is a DoRA, which scales the base's own weight: its delta depends on the base. "
        "`lbm-lora convert` reads it with the base: base_model_path."
    )
    with pytest.warns(UserWarning, match=r"1 module of DoRA: dense deltas \(0\.0 kB in all\), exact for this base"):
        found = load_adapter(tensors, base=base_of({f"{TO_Q}.weight": weight}))
    tuned = weight + up @ down
    tuned = magnitude * tuned / tuned.norm(dim=1 - axis, keepdim=True)
    torch.testing.assert_close(weight + delta(found, TO_Q), tuned, rtol=1e-5, atol=1e-5)
    assert f"{TO_Q}: the delta (4, 3) and dora_scale" in error_of(
        tensors | {f"{key}.dora_scale": torch.ones(5, 1)}, base_of({f"{TO_Q}.weight": weight})
    )


def test_values_that_replace_the_bases_become_deltas(rand: Rand) -> None:
    value, weight = rand(3), rand(3)
    tensors = {"diffusion_model.mid_block.resnets.0.norm1.set_weight": value}
    assert "is a value that replaces the base's: its delta depends on the base" in error_of(tensors)
    name = ParamName("mid_block.resnets.0.norm1.weight")
    assert torch.equal(load_adapter(tensors, base=base_of({name: weight})).dense[name], value - weight)
    assert error_of(tensors, base_of({"conv_in.weight": weight})) == (
        f"the state dict: {name} is not in the base state dict."
    )


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"lora_up.weight": (4, 2)}, f"{TO_Q} has no down factor. The file is incomplete."),
        (
            {"lora_up.weight": (4, 2), "lora_down.weight": (3, 5)},
            f"{TO_Q}: up (4, 2) and down (3, 5) do not fit together: the second size of up and the first of down must "
            "be the rank.",
        ),
        (
            {"hada_w1_a": (4, 2), "hada_w1_b": (2, 3), "hada_w2_a": (4, 2)},
            f"{TO_Q}: hada_w1_a (4, 2), hada_w1_b (2, 3), hada_w2_a (4, 2) are incomplete or do not fit together.",
        ),
        (
            {"lora_up.weight": (4, 2), "lora_down.weight": (2, 3), "diff": (4, 3)},
            f"{TO_Q}.weight has both factors and a dense delta. Remove one of them.",
        ),
        (
            {"lora_up.weight": (4, 2), "lora_down.weight": (2, 3), "alpha": (0,)},
            f"the alpha of {TO_Q} has shape (0,), but it must be one number. It is damaged.",
        ),
        (
            {"lokr_w1_a": (2, 1), "lokr_w1_b": (1, 2), "lokr_w2": (2, 2), "alpha": (1, 3)},
            f"the alpha of {TO_Q} has shape (1, 3), but it must be one number. It is damaged.",
        ),
        (
            {"lora_up.weight": (4, 2), "lora_mid.weight": (2, 0), "lora_down.weight": (0, 3)},
            f"{TO_Q}: up (4, 2) and down (0, 3) do not fit together: the second size of up and the first of down must "
            "be the rank.",
        ),
        (
            {"lokr_w1": (0, 0), "lokr_w2": (0, 0)},
            f"{TO_Q}: lokr_w1 (0, 0), lokr_w2 (0, 0) are incomplete or do not fit together.",
        ),
        (
            {"lokr_w1": (512, 512), "lokr_w2": (64, 64)},
            f"{TO_Q}: lokr_w1 (512, 512), lokr_w2 (64, 64) make a matrix of 32,768 x 32,768. The limit is 268,435,456 "
            "values.",
        ),
        (
            {"lokr_w1": (2, 2), "lokr_w2": (2, 2), "diff": (4, 4)},
            f"{TO_Q}.weight has two deltas. Remove one of them.",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(parts: dict[str, tuple[int, ...]], text: str) -> None:
    tensors = {f"{FLAT}.{part}": torch.ones(shape) for part, shape in parts.items()}
    assert error_of(tensors) == f"the state dict: {text}"
