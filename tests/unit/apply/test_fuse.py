"""Fuse arithmetic: in fp32, cast once, and nothing is touched that no adapter changes."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, LoraModule
from lbm_lora.apply import ScaledAdapter, fused, fused_tensors
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import AdapterError, CheckpointError
from lbm_lora.naming import ModuleName, ParamName
from smallnet import extract_files, small_state

Rand = Callable[..., Tensor]
Save = Callable[[str, Mapping[str, Tensor]], Path]
WEIGHT, BIAS = ParamName("a.weight"), ParamName("a.bias")


@pytest.fixture
def adapter(rand: Rand) -> Adapter:
    module = LoraModule(ModuleName("a"), rand(2, 6).bfloat16(), rand(4, 2).bfloat16(), 1.0)
    return Adapter({module.name: module}, {BIAS: rand(4).bfloat16()})


def same_bits(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first.view(torch.int16), second.view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("lora_scale", [1.0, 0.5, -1.0, -0.3, 2.0])
def test_the_sum_is_in_fp32_and_cast_once(adapter: Adapter, rand: Rand, dtype: torch.dtype, lora_scale: float) -> None:
    for name, shape in ((WEIGHT, (4, 6)), (BIAS, (4,))):
        weight, delta = rand(*shape).to(dtype), adapter.delta(name)
        assert delta is not None
        found = fused(weight, name, [ScaledAdapter(adapter, lora_scale)])
        expected = (weight.float() + lora_scale * delta).to(dtype)
        # in fp32 itself a processor may round the product and the sum, or the sum alone
        tolerance = 1e-6 if dtype == torch.float32 else 0.0
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        assert found.dtype == dtype


def test_several_adapters_add_up(adapter: Adapter, rand: Rand) -> None:
    other = Adapter({}, {WEIGHT: rand(4, 6), BIAS: rand(4)})
    scaled = [ScaledAdapter(adapter, 0.5), ScaledAdapter(other, -2.0)]
    weight = rand(4, 6)
    one, two = adapter.delta(WEIGHT), other.delta(WEIGHT)
    assert one is not None
    assert two is not None
    torch.testing.assert_close(fused(weight, WEIGHT, scaled), weight + (0.5 * one - 2 * two), rtol=1e-6, atol=1e-6)


def test_a_scale_of_0_keeps_infinite_deltas_out(rand: Rand) -> None:
    broken = Adapter({}, {BIAS: torch.full((4,), torch.inf)})
    weight = rand(4)
    assert fused(weight, BIAS, [ScaledAdapter(broken, 0.0)]) is weight


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("prefix", ["", "denoiser."])
def test_a_checkpoint_is_fused_tensor_by_tensor(save: Save, prefix: str, suffix: str) -> None:
    other = {"vae.stem.weight": torch.ones(8, 3, 3, 3), "num_iterations": torch.tensor(9)} if prefix else {}
    base, tuned = ({**small_state(seed, prefix), **other} for seed in (1, 2))
    paths = save(f"base{suffix}", base), save(f"tuned{suffix}", tuned)
    extracted = extract_files(*paths, rank=9999, conv_rank=9999, dtype=torch.float32)
    checkpoint = open_checkpoint(paths[0])
    found = dict(fused_tensors(checkpoint, prefix, [ScaledAdapter(extracted.adapter)]))
    assert list(found) == list(checkpoint.specs)
    for key, tensor in found.items():
        expected = base[key] if "num_batches" in key else tuned[key]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-7)
        assert tensor.dtype == base[key].dtype
    for key in other:
        assert torch.equal(found[key], base[key])


def test_a_result_that_leaves_the_range_is_refused_with_its_cause(tmp_path: Path) -> None:
    name = ParamName("a.weight")
    adapter = Adapter({}, {name: torch.full((2, 2), 60_000.0)})
    halves = torch.full((2, 2), 60_000.0, dtype=torch.float16)
    with pytest.raises(
        AdapterError, match=r"^a\.weight: base \+ delta leaves the range of fp16: the LoRA at 1\. Choose"
    ):
        fused(halves, name, [ScaledAdapter(adapter, 1.0)])
    assert fused(halves, name, [ScaledAdapter(adapter, 0.05)]).isfinite().all()
    halves[1, 1] = float("nan")
    with pytest.raises(AdapterError, match=r"^a\.weight: the base holds NaN or infinite values\. Repair it"):
        fused(halves, name, [ScaledAdapter(adapter, 1.0)])
    with pytest.raises(AdapterError, match=r"^a\.weight: the base holds int64, to which no delta can be added\.$"):
        fused(torch.ones(2, 2, dtype=torch.int64), name, [ScaledAdapter(adapter, 1.0)])


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_checkpoint_that_is_not_finite_is_not_copied(number: float) -> None:
    """Also where no LoRA changes it."""
    tensors = {"denoiser.a.weight": torch.ones(2, 2), "vae.b": torch.tensor([1.0, number])}
    checkpoint = open_checkpoint(tensors)
    with pytest.raises(CheckpointError, match=r": vae\.b holds NaN or infinite values\. Repair the file first\.$"):
        list(fused_tensors(checkpoint, "denoiser.", []))
