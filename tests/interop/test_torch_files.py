"""Our `.ckpt` files read by torch with `weights_only=True`, and the files of torch and Lightning read by ours."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lbm_lora.checkpoint import TensorSpec, TorchWriter, open_checkpoint
from lbm_lora.checkpoint.torch_file import TorchFile

pytestmark = pytest.mark.interop
seeded = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

WRITABLE = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def random_bits(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    """Any bit pattern, not-a-numbers included."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    count = torch.Size(shape).numel() * dtype.itemsize
    return torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator).view(dtype).reshape(shape)


def same_bits(first: Tensor, second: Tensor) -> bool:
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return torch.equal(
        first.contiguous().reshape(-1).view(torch.uint8), second.contiguous().reshape(-1).view(torch.uint8)
    )


def tensors_of(dtypes: list[torch.dtype]) -> st.SearchStrategy[dict[str, Tensor]]:
    values = st.builds(random_bits, st.sampled_from(dtypes), SHAPES, st.integers(0, 1000))
    return st.dictionaries(NAMES, values, min_size=1, max_size=6)


@seeded
@given(tensors_of(WRITABLE), st.dictionaries(NAMES.filter(lambda n: n != "model_state_dict"), PLAIN, max_size=3))
def test_torch_reads_what_we_write(tmp_path: Path, tensors: dict[str, Tensor], extra: dict[str, Any]) -> None:
    path = tmp_path / "a.ckpt"
    with TorchWriter(path, {n: TensorSpec.of(t) for n, t in tensors.items()}, extra=extra) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    for mmap in (False, True):
        tree = torch.load(path, weights_only=True, mmap=mmap)
        state = tree.pop("model_state_dict")
        assert tree == extra
        assert list(state) == list(tensors)
        for name, tensor in tensors.items():
            assert same_bits(state[name], tensor)
            assert state[name].stride() == torch.empty(tensor.shape).stride()
            assert not state[name].requires_grad


@seeded
@given(tensors_of([*WRITABLE, torch.float8_e4m3fn, torch.uint16]))
def test_we_read_what_torch_writes(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": tensors}, path)
    found = TorchFile(path)
    assert list(found.specs) == list(tensors)
    for name, tensor in tensors.items():
        assert found.specs[name] == TensorSpec.of(tensor)
        assert same_bits(found.read(name), tensor)


def layouts() -> dict[str, tuple[Any, dict[str, Tensor]]]:
    """What torch.save is given, and the tensors that are in it."""
    storage = torch.arange(24.0)
    views = {
        "all": storage.reshape(4, 6),
        "columns": storage.reshape(4, 6)[:, 1::2],
        "transposed": storage.reshape(4, 6).T,
        "tail": storage[20:],
        "expanded": storage[3:4].expand(5),
        "scalar": storage[7],
    }
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2, bias=False))
    tied = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    tied["b"].weight = tied["a"].weight
    parameters = {name: nn.Parameter(torch.arange(3.0).bfloat16()) for name in ("p", "q")}
    return {
        "a plain dictionary": (dict(views), views),
        "views of one storage": ({"state_dict": views}, views),
        "an ordered dictionary with its metadata": (net.state_dict(), dict(net.state_dict())),
        "a state with version entries": ({"state_dict": net.state_dict(), "epoch": 3}, dict(net.state_dict())),
        "parameters": (OrderedDict(parameters), {n: p.detach() for n, p in parameters.items()}),
        "tied parameters": ({"model_state_dict": tied.state_dict()}, dict(tied.state_dict())),
        "half of a network": (net.half().state_dict(), dict(net.half().state_dict())),
    }


@pytest.mark.parametrize("layout", layouts())
def test_layouts_of_torch_save(tmp_path: Path, layout: str) -> None:
    tree, tensors = layouts()[layout]
    path = tmp_path / "a.ckpt"
    torch.save(tree, path)
    expected = torch.load(path, weights_only=True)
    expected = expected.get("state_dict", expected.get("model_state_dict", expected))
    with open_checkpoint(path) as found:
        assert list(found.specs) == list(tensors)
        for name, tensor in tensors.items():
            assert found.specs[name] == TensorSpec.of(tensor)
            assert same_bits(found.read(name), expected[name])
            assert found.read(name).stride() == expected[name].stride()


def test_a_checkpoint_of_lightning(tmp_path: Path) -> None:
    class Schedule:
        """A class of the trainer's own code, as it ends up in hyper_parameters."""

        def __init__(self) -> None:
            self.values = [1, 2]

    Schedule.__module__, Schedule.__qualname__ = "__main__", "Schedule"
    state = {
        "model.denoiser._orig_mod.conv_in.weight": torch.ones(2, 2),
        "model.denoiser.mid._orig_mod.conv.weight": torch.ones(2, 2, 1, 1),
        "model.vae.vae_model.encoder.conv_in.bias": torch.zeros(3),
        "model.num_iterations": torch.tensor(5),
    }
    adam = torch.optim.AdamW([nn.Parameter(torch.ones(2))]).state_dict()
    tree = {
        "epoch": 1,
        "global_step": 10,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": OrderedDict(state),
        "optimizer_states": [adam],
        "loops": {"fit_loop": {"progress": {"total": 1}}},
        "hparams_name": "kwargs",
    }
    torch.save(tree, tmp_path / "a.ckpt")
    with open_checkpoint(tmp_path / "a.ckpt") as found:
        assert list(found.specs) == [
            "denoiser.conv_in.weight",
            "denoiser.mid.conv.weight",
            "vae.vae_model.encoder.conv_in.bias",
            "num_iterations",
        ]
        assert list(found.component()) == ["conv_in.weight", "mid.conv.weight"]
        assert torch.equal(found.read("num_iterations"), torch.tensor(5))
        assert found.extra["epoch"] == 1
        assert found.extra["loops"] == {"fit_loop": {"progress": {"total": 1}}}
