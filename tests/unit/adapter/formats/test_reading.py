"""Foreign files read completely: endings, rebuilt deltas, and what does not belong together."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lbm_lora.adapter import Adapter, load_adapter
from lbm_lora.adapter.formats.reading import grouped
from lbm_lora.adapter.formats.rebuild import dora_delta, loha, lokr
from lbm_lora.checkpoint import Component, open_checkpoint
from lbm_lora.errors import AdapterError, InputError
from lbm_lora.factorize import Factors
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
            {"lokr_w1": (2, 2), "lokr_w2": (2, 2), "diff": (4, 4)},
            f"{TO_Q}.weight has two deltas. Remove one of them.",
        ),
    ],
)
def test_what_does_not_belong_together_is_refused(parts: dict[str, tuple[int, ...]], text: str) -> None:
    tensors = {f"{FLAT}.{part}": torch.ones(shape) for part, shape in parts.items()}
    assert error_of(tensors) == f"the state dict: {text}"


def named(stem: str) -> ModuleName | None:
    return ModuleName(stem) if stem.startswith("x") else None


@pytest.mark.parametrize(
    ("up", "down"),
    [
        (".lora_up.weight", ".lora_down.weight"),
        ("_lora.up.weight", "_lora.down.weight"),
        (".lora_B.weight", ".lora_A.weight"),
        (".lora.up.weight", ".lora.down.weight"),
        (".lora_B", ".lora_A"),
        (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
        (".lora_B.default.weight", ".lora_A.default.weight"),
    ],
)
def test_every_ending_of_factors_that_comfyui_tries(up: str, down: str) -> None:
    found = grouped({f"x{up}": torch.ones(2), f"x{down}": torch.ones(3)}, named, Path("f"))
    assert {role: len(tensor) for role, tensor in found.factors[ModuleName("x")].items()} == {"up": 2, "down": 3}


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (["x.lora_up.bias"], "f: x.lora_up.bias is not a key of a LoRA that can be read."),
        (
            ["x.a", "x.b", "x.c", "x.d"],
            "f: 4 names are not keys of a LoRA that can be read: x.a, x.b, x.c and 1 more.",
        ),
        (["y.alpha", "z.alpha"], "f: 2 names are not modules of an LBM's denoiser: y, z."),
        (["x.lora_up.weight", "x.lora_B.weight"], "f: x.lora_B.weight repeats what another key says."),
    ],
)
def test_what_is_not_read_is_an_error(keys: list[str], text: str) -> None:
    with pytest.raises(AdapterError) as caught:
        grouped({key: torch.ones(1) for key in keys}, named, Path("f"))
    assert str(caught.value) == text


SIZES = st.integers(1, 4)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def matrix_of(found: Factors | Tensor) -> Tensor:
    return found if isinstance(found, Tensor) else found.product()


@given(SIZES, SIZES, SIZES, SIZES, st.booleans())
def test_loha(out: int, inputs: int, rank: int, kernel: int, tucker: bool) -> None:
    if tucker:
        parts = {f"hada_w{n}_a": normal(rank, out) + n for n in (1, 2)}
        parts |= {f"hada_w{n}_b": normal(rank, inputs) * n for n in (1, 2)}
        parts |= {f"hada_t{n}": normal(rank, rank, kernel, kernel) - n for n in (1, 2)}
        one, two = (
            torch.einsum("ijkl,ip,jr->prkl", parts[f"hada_t{n}"], parts[f"hada_w{n}_a"], parts[f"hada_w{n}_b"])
            for n in (1, 2)
        )
    else:
        parts = {f"hada_w{n}_a": normal(out, rank) + n for n in (1, 2)}
        parts |= {f"hada_w{n}_b": normal(rank, inputs) * n for n in (1, 2)}
        one, two = (parts[f"hada_w{n}_a"] @ parts[f"hada_w{n}_b"] for n in (1, 2))
    found = loha(parts)
    assert isinstance(found, Tensor) or found.rank == rank * rank
    torch.testing.assert_close(matrix_of(found), (one * two).flatten(1), rtol=1e-4, atol=1e-4)


@given(SIZES, SIZES, SIZES, SIZES, st.sampled_from([1, 3]), st.sampled_from(["full", "one", "both", "tucker"]))
def test_lokr(a: int, b: int, c: int, d: int, kernel: int, kind: str) -> None:
    first, second = {"lokr_w1": normal(a, b)}, {"lokr_w2": normal(c, d, kernel, kernel)}
    one, two = first["lokr_w1"], second["lokr_w2"]
    if kind == "both":
        first = {"lokr_w1_a": normal(a, 2), "lokr_w1_b": normal(2, b)}
        one = first["lokr_w1_a"] @ first["lokr_w1_b"]
    if kind in ("one", "both"):
        second = {"lokr_w2_a": normal(c, 2), "lokr_w2_b": normal(2, d * kernel * kernel)}
        two = (second["lokr_w2_a"] @ second["lokr_w2_b"]).reshape(c, d, kernel, kernel)
    if kind == "tucker":
        second = {"lokr_t2": normal(2, 2, kernel, kernel), "lokr_w2_a": normal(2, c), "lokr_w2_b": normal(2, d)}
        two = torch.einsum("ijkl,ip,jr->prkl", second["lokr_t2"], second["lokr_w2_a"], second["lokr_w2_b"])
    expected = torch.kron(one[:, :, None, None], two.contiguous())
    torch.testing.assert_close(matrix_of(lokr(first | second)), expected.flatten(1), rtol=1e-4, atol=1e-5)


MISFITS = "are incomplete or do not fit together."


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            {"w1": (2**10, 2**10), "w2": (2**5, 2**5)},
            "make a matrix of 32,768 x 32,768. The limit is 268,435,456 values.",
        ),
        ({"w1": (0, 0), "w2": (0, 0)}, MISFITS),
        ({"w1": (2, 2)}, MISFITS),
        ({"w1": (2, 2), "w2_a": (2, 2), "w2_b": (3, 2)}, MISFITS),
        ({"w1": (2, 2), "w2_a": (2, 2), "w2_b": (2, 2), "t2": (2, 3, 1, 1)}, MISFITS),
    ],
)
def test_lokr_that_is_too_large_or_does_not_fit(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    """Expanded tensors take no memory."""
    with pytest.raises(InputError) as error:
        lokr({f"lokr_{name}": torch.ones(()).expand(shape) for name, shape in shapes.items()})
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 3, 3)])
def test_each_output_has_the_length_that_its_magnitude_says(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    base, delta = torch.randn(shape), torch.randn(shape)
    magnitude = torch.rand(shape[0]) + 0.5
    tuned = base + dora_delta(base, delta, magnitude.reshape(-1, *(1 for _ in shape[1:])))
    for row, length, direction in zip(tuned, magnitude, base + delta, strict=True):
        torch.testing.assert_close(row, direction * (length / direction.norm()))
