"""Lora modules and adapters as values."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, LoraModule, common_dtype
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import AdapterError
from lbm_lora.naming import ModuleName, ParamName

Rand = Callable[..., Tensor]


def module(name: str, down: Tensor, up: Tensor, alpha: float) -> LoraModule:
    return LoraModule(ModuleName(name), down, up, alpha)


@pytest.fixture
def adapter(rand: Rand) -> Adapter:
    modules = [
        module("a", rand(2, 6), rand(4, 2), 2.0),
        module("b.conv", rand(3, 5, 3, 3), rand(7, 3, 1, 1), 6.0),
    ]
    dense = {ParamName("a.bias"): rand(4), ParamName("norm.weight"): rand(5), ParamName("scale"): rand()}
    return Adapter({one.name: one for one in modules}, dense, prefix="denoiser.", path=Path("x.safetensors"))


@pytest.mark.parametrize(("alpha", "scaling"), [(2.0, 1.0), (1.0, 0.5), (32.0, 16.0), (0.0, 0.0), (-2.0, -1.0)])
def test_scaling_is_alpha_over_rank(rand: Rand, alpha: float, scaling: float) -> None:
    one = module("a", rand(2, 6), rand(4, 2), alpha)
    assert (one.rank, one.scaling, one.shape) == (2, scaling, (4, 6))
    torch.testing.assert_close(one.delta(), scaling * (one.up @ one.down))


def test_the_delta_of_a_conv_has_its_shape(rand: Rand) -> None:
    one = module("a", rand(3, 5, 3, 2), rand(7, 3, 1, 1), 6.0)
    assert (one.rank, one.scaling, one.shape) == (3, 2.0, (7, 5, 3, 2))
    expected = 2 * torch.einsum("or,rikl->oikl", one.up[:, :, 0, 0].double(), one.down.double())
    torch.testing.assert_close(one.delta().double(), expected, rtol=1e-5, atol=1e-5)


def test_every_param_that_an_adapter_changes(adapter: Adapter) -> None:
    assert adapter.params == ["a.weight", "b.conv.weight", "a.bias", "norm.weight", "scale"]
    shapes = {"a.weight": (4, 6), "b.conv.weight": (7, 5, 3, 3), "a.bias": (4,), "norm.weight": (5,), "scale": ()}
    for name in map(ParamName, shapes):
        assert adapter.shape_of(name) == shapes[name]
        delta = adapter.delta(name)
        assert delta is not None
        assert (tuple(delta.shape), delta.dtype) == (shapes[name], torch.float32)


def test_factors_and_a_dense_delta_for_one_weight_are_refused(rand: Rand) -> None:
    one = module("a.b", rand(1, 3), rand(2, 1), 1.0)
    with pytest.raises(AdapterError) as caught:
        Adapter({one.name: one}, {ParamName("a.b.weight"): rand(2, 3)}, path=Path("x.safetensors"))
    assert str(caught.value) == ("x.safetensors: a.b.weight has both factors and a dense delta. Remove one of them.")


def test_an_adapter_says_what_it_is(adapter: Adapter) -> None:
    assert len(adapter) == 5
    tensors = 4 * (2 * 6 + 4 * 2 + 3 * 5 * 9 + 7 * 3 + 2 + 4 + 5 + 1)  # two alphas, three dense deltas
    assert adapter.nbytes == tensors
    assert repr(adapter) == "<Adapter x.safetensors: 2 lora modules of rank 2 to 3, 3 dense deltas, fp32, 0.0 MB>"
    one = Adapter({}, {ParamName("a.bias"): torch.zeros(3_000_000, dtype=torch.bfloat16)})
    assert repr(one) == "<Adapter: 0 lora modules, 1 dense delta, bf16, 6.0 MB>"
    assert repr(Adapter({}, {})) == "<Adapter: 0 lora modules, 0 dense deltas, empty, 0.0 MB>"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_the_bytes_of_an_adapter_are_those_of_its_file_without_the_header(
    adapter: Adapter, tmp_path: Path, dtype: torch.dtype
) -> None:
    cast = adapter.cast(dtype)
    path = cast.save(tmp_path / "l.safetensors")
    with open_checkpoint(path) as file:
        assert cast.nbytes == sum(spec.nbytes for spec in file.specs.values())


def test_save_replaces_what_is_there_and_what_was_read_stays(adapter: Adapter, tmp_path: Path) -> None:
    """As torch.save does, also the file that the adapter itself is read from."""
    path = tmp_path / "l.safetensors"
    path.write_text("theirs")
    adapter.save(path)
    read = Adapter.load(path)
    adapter.cast(torch.bfloat16).save(path)
    assert all(torch.equal(*pair) for pair in deltas(adapter, read))


def test_a_path_may_begin_with_the_home_folder(
    adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert adapter.save("~/l.safetensors") == tmp_path / "l.safetensors"
    assert Adapter.load("~/l.safetensors").params == adapter.params


def deltas(*adapters: Adapter) -> list[tuple[Tensor, ...]]:
    """The deltas of each parameter."""
    found = [[adapter.delta(name) for adapter in adapters] for name in adapters[0].params]
    return [tuple(one for one in row if one is not None) for row in found]


@dataclass(frozen=True, eq=False, repr=False)
class Measured(Adapter):
    """An adapter with a number that was measured on it."""

    error: float = 0.5


def test_what_was_measured_on_an_adapter_is_not_said_of_a_part_of_it(adapter: Adapter) -> None:
    measured = Measured(adapter.modules, adapter.dense, adapter.metadata, "denoiser.", Path("x.safetensors"))
    assert repr(measured).startswith("<Measured x.safetensors: ")
    for other in (measured.cast(torch.bfloat16), measured.filtered(lambda _: True)):
        assert type(other) is Adapter
        assert (other.prefix, other.path) == ("denoiser.", Path("x.safetensors"))


def test_the_common_dtype_is_that_of_all_factors_or_fp32(adapter: Adapter) -> None:
    half, eight = adapter.cast(torch.bfloat16), adapter.cast(torch.int8)
    assert common_dtype([half, half]) == torch.bfloat16
    assert common_dtype([half, adapter.cast(torch.float16)]) == torch.float32
    assert common_dtype([eight]) == torch.int8
    assert common_dtype([eight, half]) == torch.float32
    assert common_dtype([half.filtered(lambda name: name.endswith("bias"))]) == torch.bfloat16
