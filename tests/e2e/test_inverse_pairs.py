"""LoRAs put into the bundled mini model and taken out again, in many ways and orders: each bit is what it was."""

import gc
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lbm_lora
from lbm_lora import LBMPipeline, ScaledAdapter, bundled, fuse_module, inject, load_adapter, load_model
from lbm_lora.apply import Fused, Injection

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = lbm_lora.make_base(
        tmp_path_factory.mktemp("base") / "exact_base.ckpt",
        config_path=bundled.TUNED / "config.yaml",
        backbone_signature=str(bundled.BACKBONE),
    )
    return made.base.safetensors


@pytest.fixture(scope="module")
def loras(base: Path) -> list[Path]:
    """Two LoRAs of the fine-tune, of different ranks, with every module and dense delta."""
    paths = [base.with_name(f"rank_{rank}.safetensors") for rank in (4, 8)]
    for path, rank in zip(paths, (4, 8), strict=True):
        lbm_lora.extract(base, bundled.TUNED, rank=rank, conv_rank=rank, save_to=path)
    return paths


def bits(network: nn.Module) -> dict[str, bytes]:
    return {name: t.reshape(-1).view(torch.uint8).numpy().tobytes() for name, t in network.state_dict().items()}


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in network.modules())


def living() -> int:
    """Bytes of all tensors that something holds."""
    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter)]
    held = [one for one in tensors if one.layout == torch.strided]  # others are none of ours, and have no storage
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in held}.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_adapters_in_and_out_in_random_order(base: Path, loras: list[Path], dtype: torch.dtype) -> None:
    network, draw = load_model(base, dtype=dtype).denoiser, random.Random(0)
    adapters, before = [load_adapter(path) for path in loras], bits(network)
    inside: list[Fused | Injection] = []

    def cycle() -> None:
        while len(inside) < 2:
            scale = draw.choice([1.0, -0.3, "0.8,down_blocks=0.5,attn1=0"])
            put_in = draw.choice([inject, fuse_module])
            inside.append(put_in(network, [ScaledAdapter(draw.choice(adapters), scale)]))
        assert bits(network) != before
        while inside:
            state = inside.pop(draw.randrange(len(inside)))
            state.eject() if isinstance(state, Injection) else state.unfuse()

    cycle()
    held = living()
    for _ in range(10):
        cycle()
        assert bits(network) == before
    assert hooks(network) == 0
    assert living() == held


def test_changes_of_a_pipelines_loras(base: Path, loras: list[Path]) -> None:
    pipe, draw = LBMPipeline.from_checkpoint(base, torch_dtype="bf16"), random.Random(0)
    before = bits(pipe.unet)

    def loaded() -> list[str]:
        return pipe.get_list_adapters().get("unet", [])

    def load() -> None:
        pipe.load_lora_weights(draw.choice(loras), adapter_name=str(draw.random()))

    def delete() -> None:
        pipe.delete_adapters(draw.sample(loaded(), min(1, len(loaded()))))

    def rescale() -> None:
        names = draw.sample(loaded(), len(loaded()))
        pipe.set_adapters(names, [draw.choice([0.5, "1,attn1=0", -1.0]) for _ in names] or 1.0)

    def scaled_for_a_while() -> None:
        with pipe.lora_scale(draw.choice([0.0, "0.5,mid_block=0"])):
            pipe.set_adapters(pipe.get_active_adapters())

    held = 0
    changes = [load, delete, rescale, scaled_for_a_while, pipe.fuse_lora, pipe.unfuse_lora, pipe.disable_lora]
    for number in range(30):
        draw.choice([*changes, pipe.enable_lora])()
        if number % 10 == 9:
            pipe.unload_lora_weights()
            assert bits(pipe.unet) == before
            assert hooks(pipe.unet) == 0
            held = held or living()
    assert living() == held
