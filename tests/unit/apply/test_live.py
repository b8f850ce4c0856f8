"""Adapters in a live model: fuse and unfuse, inject and eject, each an exact inverse of the other."""

import gc
import itertools
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lbm_lora.adapter import Adapter, LoraModule
from lbm_lora.apply import Fused, Injection, ScaledAdapter, fuse_module, inject
from lbm_lora.errors import AdapterError, PatternError
from lbm_lora.naming import ModuleName, ParamName
from smallnet import SmallNet, extract_files, small_net, small_state

Rand = Callable[..., Tensor]
Save = Callable[[str, Mapping[str, Tensor]], Path]
PutIn = Callable[[nn.Module, list[ScaledAdapter]], Fused | Injection]
BOTH: list[PutIn] = [fuse_module, inject]


def take_out(state: Fused | Injection) -> None:
    if isinstance(state, Injection):
        state.eject()
    else:
        state.unfuse()


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: t.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for name, t in model.state_dict().items()}


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())  # pyright: ignore[reportPrivateUsage]


@pytest.fixture
def adapter(save: Save) -> Adapter:
    """Low rank on the matrices of a SmallNet, dense on the rest, its batch norm's running values included."""
    return extract_files(
        save("base.safetensors", small_state(1)), save("tuned.safetensors", small_state(2)), dtype=torch.float32
    ).adapter


@pytest.fixture
def images(rand: Rand) -> Tensor:
    return rand(2, 3, 9, 8)


ORDERS = list(itertools.permutations(range(3)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_adapters_taken_out_in_any_order_leave_what_the_rest_alone_would_give(
    adapter: Adapter, dtype: torch.dtype
) -> None:
    """At each moment the bits are those of a network into which the adapters that are still in it were put alone."""
    ways: list[tuple[PutIn, ScaledAdapter]] = [
        (fuse_module, ScaledAdapter(adapter, 0.3)),
        (inject, ScaledAdapter(adapter, -1.7)),
        (fuse_module, ScaledAdapter(adapter, "0.9,head=0.1")),
    ]
    for order in ORDERS:
        net, left = small_net(1).to(dtype), list(range(3))
        states = [put_in(net, [scaled]) for put_in, scaled in ways]
        for one in order:
            take_out(states[one])
            left.remove(one)
            alone = small_net(1).to(dtype)
            kept = [ways[other][0](alone, [ways[other][1]]) for other in left]
            assert bits(net) == bits(alone), (order, one)
            assert hooks(net) == hooks(alone)
            assert len(kept) == len(left)
        assert bits(net) == bits(small_net(1).to(dtype))


def test_a_hundred_cycles_in_random_order_keep_no_tensor(adapter: Adapter) -> None:
    net, draw = small_net(1), random.Random(0)
    before = bits(net)
    inside: list[Fused | Injection] = []

    def cycle() -> None:
        while len(inside) < 2:
            inside.append(draw.choice(BOTH)(net, [ScaledAdapter(adapter, draw.uniform(-2, 2))]))
        for _ in range(2):
            take_out(inside.pop(draw.randrange(len(inside))))

    cycle()
    tensors = living()
    for _ in range(100):
        cycle()
        assert bits(net) == before
    assert hooks(net) == 0
    assert living() == tensors


def living() -> int:
    """Bytes of all tensors that something holds."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter) and one.layout == torch.strided]
    found = {one.untyped_storage().data_ptr(): one.nbytes for one in tensors}
    return sum(found.values())


@pytest.mark.parametrize("put_in", BOTH)
def test_a_pattern_that_matches_nothing_is_refused_before_anything_changes(adapter: Adapter, put_in: PutIn) -> None:
    net = small_net(1)
    with pytest.raises(PatternError) as caught:
        put_in(net, [ScaledAdapter(adapter), ScaledAdapter(adapter, "1,haed=0")])
    assert str(caught.value).startswith(f"the LoRA: pattern 'haed' matches none of {len(adapter)} names. Nearest: head")
    assert bits(net) == bits(small_net(1))
    assert hooks(net) == 0


@pytest.mark.parametrize("lora_scale", [1.0, 0.4, -0.7])
def test_live_and_fused_give_the_same_output(adapter: Adapter, images: Tensor, lora_scale: float) -> None:
    live, fused = small_net(1), small_net(1)
    inject(live, [ScaledAdapter(adapter, lora_scale)])
    fuse_module(fused, [ScaledAdapter(adapter, lora_scale)])
    assert not torch.equal(fused(images), small_net(1)(images))
    torch.testing.assert_close(live(images), fused(images), rtol=1e-5, atol=1e-6)


CONVS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "uneven": {"kernel_size": (1, 3), "stride": (2, 1), "padding": (0, 1)},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "same": {"kernel_size": 3, "padding": "same", "bias": False},
    "1x1": {"kernel_size": 1},
}


@pytest.mark.parametrize("options", CONVS.values(), ids=CONVS)
def test_every_kind_of_conv(rand: Rand, options: dict[str, Any]) -> None:
    convs = [nn.Sequential(nn.Conv2d(3, 5, **options)) for _ in range(2)]
    convs[1].load_state_dict(convs[0].state_dict())
    shape = tuple(convs[0].get_parameter("0.weight").shape)
    module = LoraModule(ModuleName("0"), rand(2, *shape[1:]), rand(5, 2, 1, 1), 3.0)
    images, adapters = rand(2, 3, 9, 8), [ScaledAdapter(Adapter({module.name: module}, {}), 0.5)]
    inject(convs[0], adapters)
    fuse_module(convs[1], adapters)
    torch.testing.assert_close(convs[0](images), convs[1](images), rtol=1e-5, atol=1e-5)


def test_running_values_of_a_batch_norm_are_fused_and_restored(adapter: Adapter) -> None:
    net = small_net(1)
    state = fuse_module(net, [ScaledAdapter(adapter)])
    torch.testing.assert_close(net.bn1.running_mean, small_net(2).bn1.running_mean)
    torch.testing.assert_close(net.bn1.running_var, small_net(2).bn1.running_var)
    assert net.bn1.num_batches_tracked == 1
    state.unfuse()
    assert bits(net) == bits(small_net(1))


class OddNet(nn.Module):
    """What has a matrix for a weight and takes no live LoRA."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.embedding = nn.Embedding(4, 4)
        self.grouped = nn.Conv2d(4, 4, 3, groups=2)
        self.circular = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")
        self.transposed = nn.ConvTranspose2d(4, 4, 3)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("embedding", "Embedding"), ("grouped", "Conv2d"), ("circular", "Conv2d"), ("transposed", "ConvTranspose2d")],
)
def test_what_takes_no_live_lora_is_refused_and_can_be_fused(rand: Rand, name: str, kind: str) -> None:
    net = OddNet()
    before = bits(net)
    shape = tuple(net.get_parameter(f"{name}.weight").shape)
    odd = LoraModule(ModuleName(name), rand(1, *shape[1:]), rand(4, 1, *(1 for _ in shape[2:])), 1.0)
    fine = LoraModule(ModuleName("a"), rand(1, 4), rand(4, 1), 1.0)
    adapter = Adapter({fine.name: fine, odd.name: odd}, {ParamName("a.bias"): rand(4)})
    with pytest.raises(AdapterError) as caught:
        inject(net, [ScaledAdapter(adapter)])
    assert str(caught.value) == (
        f"{name} is a {kind}: only Linear and Conv2d (one group, zero padding) support a live LoRA. Fuse it instead."
    )
    assert bits(net) == before
    assert hooks(net) == 0  # also that of the module that came first
    state = fuse_module(net, [ScaledAdapter(adapter)])
    torch.testing.assert_close(net.get_parameter(f"{name}.weight"), _weight(before, net, name) + odd.delta())
    state.unfuse()
    assert bits(net) == before


def _weight(before: dict[str, bytes], net: nn.Module, name: str) -> Tensor:
    shape = net.get_parameter(f"{name}.weight").shape
    return torch.frombuffer(bytearray(before[f"{name}.weight"]), dtype=torch.float32).reshape(shape)


@pytest.mark.parametrize("put_in", BOTH)
@pytest.mark.parametrize(
    ("name", "shape", "text"),
    [
        (
            "nowhere.bias",
            (4,),
            "the LoRA: 1 of 2 parameters are not in the model: nowhere.bias. To apply the rest: allow_unmatched.",
        ),
        (
            "norm.bias",
            (1,),
            "norm.bias: the LoRA needs shape (1,), the model has (6,). Is it an adapter for this network?",
        ),
        (
            "norm.bias",
            (6, 6),
            "norm.bias: the LoRA needs shape (6, 6), the model has (6,). Is it an adapter for this network?",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_anything_changes(
    put_in: PutIn, name: str, shape: tuple[int, ...], text: str
) -> None:
    net = small_net(1)
    adapter = Adapter({}, {ParamName("bn1.bias"): torch.ones(8), ParamName(name): torch.ones(shape)})
    with pytest.raises(AdapterError) as caught:
        put_in(net, [ScaledAdapter(Adapter({}, {})), ScaledAdapter(adapter)])
    assert str(caught.value) == text
    assert bits(net) == bits(small_net(1))


def test_a_live_lora_follows_the_dtype_of_its_module(adapter: Adapter, images: Tensor) -> None:
    net = small_net(1).bfloat16()
    state = inject(net, [ScaledAdapter(adapter)])
    assert net(images.bfloat16()).dtype == torch.bfloat16
    reference: SmallNet = small_net(1)
    fuse_module(reference, [ScaledAdapter(adapter)])
    torch.testing.assert_close(net(images.bfloat16()).float(), reference(images), rtol=0.1, atol=0.1)
    state.eject()
    state.eject()  # a second time does no harm
    assert bits(net) == bits(small_net(1).bfloat16())
