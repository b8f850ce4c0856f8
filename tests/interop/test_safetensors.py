"""Our `.safetensors` files read by the reference library, and its files read by ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lbm_lora.checkpoint import SafetensorsWriter, TensorSpec, open_checkpoint
from lbm_lora.checkpoint.safetensors_file import SafetensorsFile
from lbm_lora.checkpoint.spec import SAFETENSORS_DTYPES

pytestmark = pytest.mark.interop
seeded = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

DTYPES = st.sampled_from(list(SAFETENSORS_DTYPES.values()))
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda n: n != "__metadata__")
METADATA = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"]))
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
    return torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))


TENSORS = st.dictionaries(NAMES, st.builds(random_bits, DTYPES, SHAPES, st.integers(0, 1000)), max_size=6)


def write(path: Path, tensors: Mapping[str, Tensor], names: list[str], **options: Any) -> None:
    with SafetensorsWriter(path, {n: TensorSpec.of(t) for n, t in tensors.items()}, **options) as writer:
        for name in names:
            writer.write(name, tensors[name])


@seeded
@given(TENSORS, METADATA, st.data())
def test_the_reference_reads_what_we_write(
    tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], data: Any
) -> None:
    path = tmp_path / "a.safetensors"
    names = data.draw(st.permutations(list(tensors)))[: data.draw(st.integers(0, len(tensors)))]
    write(path, tensors, names, metadata=metadata)
    found = load_file(path)
    assert set(found) == set(names)
    assert all(same_bits(found[name], tensors[name]) for name in names)
    with safe_open(path, framework="pt") as file:
        assert (file.metadata() or {}) == metadata
        for name in names:
            assert tuple(file.get_slice(name).get_shape()) == tuple(tensors[name].shape)
            assert same_bits(file.get_tensor(name), tensors[name])


@seeded
@given(TENSORS.filter(len), METADATA)  # safetensors 0.8.0 writes a broken header where there is no tensor
def test_we_read_what_the_reference_writes(
    tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]
) -> None:
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, metadata=metadata)
    found = SafetensorsFile(path)
    assert dict(found.metadata) == metadata
    assert set(found.specs) == set(tensors)
    for name, tensor in tensors.items():
        assert found.specs[name] == TensorSpec.of(tensor)
        assert same_bits(found.read(name), tensor)


@seeded
@given(TENSORS, METADATA)
def test_we_read_what_we_write(tmp_path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    path = tmp_path / "a.safetensors"
    write(path, tensors, list(tensors), metadata=metadata)
    found = SafetensorsFile(path)
    assert dict(found.metadata) == metadata
    assert {name: found.specs[name] for name in found.specs} == {n: TensorSpec.of(t) for n, t in tensors.items()}
    assert all(same_bits(found.read(name), tensor) for name, tensor in tensors.items())


def test_shards_of_the_hub_are_one_checkpoint(tmp_path: Path) -> None:
    from huggingface_hub import save_torch_state_dict

    tensors = {f"layer.{index}.weight": torch.full((64, 64), float(index)) for index in range(5)}
    save_torch_state_dict(tensors, tmp_path, max_shard_size=40_000, filename_pattern="model{suffix}.safetensors")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    with open_checkpoint(tmp_path) as found:
        assert set(found.specs) == set(tensors)
        assert all(torch.equal(found.read(name), tensor) for name, tensor in tensors.items())
