"""Packed files: every width is found again, and damage is one line."""

import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lbm_lora.adapter import Adapter, LoraModule, load_adapter, save_adapter
from lbm_lora.adapter.packed import DATA, INDEX, decode_counts, decode_packed, encode_counts, encode_packed, regridded
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import AdapterError
from lbm_lora.factorize import (
    PACKED,
    WIDTHS,
    Counts,
    Grid,
    down_shape,
    largest,
    matrix_shape,
    nearest,
    up_shape,
    vector_of,
)
from lbm_lora.naming import ModuleName, ParamName


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed_module(name: str, shape: tuple[int, ...], widths: tuple[int, ...], seed: int = 0) -> LoraModule:
    rows, columns = matrix_shape(shape)
    down, _ = nearest(random(len(widths), columns, seed=seed), widths)
    up, unit = nearest(random(len(widths), rows, seed=seed + 1), widths)
    grid = Grid(widths, unit)
    found, rank = Counts(up.mT, down, grid).factors(), len(widths)
    return LoraModule(
        ModuleName(name), found.down.reshape(down_shape(shape, rank)), found.up.reshape(up_shape(shape, rank)),
        float(rank), grid,
    )  # fmt: skip


def packed_adapter(widths: tuple[int, ...] = (8, 5, 5, 3)) -> Adapter:
    modules = [packed_module("mid.conv", (6, 4, 3, 3), widths), packed_module("mid.to_q", (5, 8), (16, 2), seed=5)]
    dense: dict[ParamName, torch.Tensor] = {}
    grids: dict[ParamName, Grid] = {}
    for name, shape, width in (("mid.conv.bias", (7,), 6), ("mid.to_k.weight", (4, 6), 5)):
        counts, unit = nearest(random(*shape, seed=9).flatten()[None], [width])
        grids[ParamName(name)] = grid = Grid((width,), unit)
        dense[ParamName(name)] = vector_of(counts[0], grid).reshape(shape)
    return Adapter(
        {module.name: module for module in modules}, dense, prefix="denoiser.", dtype=PACKED, grids=grids
    )  # fmt: skip


def same(one: Adapter, other: Adapter) -> bool:
    return (
        one.params == other.params
        and one.prefix == other.prefix
        and all(torch.equal(one.delta(name), other.delta(name)) for name in one.params)  # pyright: ignore[reportArgumentType]
    )


@settings(max_examples=40, deadline=None)
@given(widths=st.lists(st.sampled_from(WIDTHS), min_size=1, max_size=9))
def test_every_width_is_found_again(widths: list[int]) -> None:
    adapter = packed_adapter(tuple(widths))
    prefix, modules, dense, grids = decode_packed(encode_packed(adapter), Path("x"))
    found = Adapter(modules, dense, prefix=prefix, dtype=PACKED, grids=grids)
    assert same(found, adapter)
    assert [module.grid.widths for module in modules.values() if module.grid] == [tuple(widths), (16, 2)]
    assert torch.equal(encode_packed(found)[DATA], encode_packed(adapter)[DATA])


def test_a_file_is_read_again_and_written_the_same(tmp_path: Path) -> None:
    adapter = packed_adapter()
    save_adapter(adapter, tmp_path / "a.safetensors")
    found = load_adapter(tmp_path / "a.safetensors")
    assert same(found, adapter)
    assert found.precision == "packed"
    save_adapter(found, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    with open_checkpoint(tmp_path / "a.safetensors") as file:
        assert set(file.specs) == {INDEX, DATA}
        assert file.specs[DATA].nbytes == found.nbytes


def test_changed_values_are_refused(tmp_path: Path) -> None:
    adapter = packed_adapter()
    adapter.modules[ModuleName("mid.to_q")].up.mul_(1.01)
    with pytest.raises(AdapterError, match="not on the grid"):
        save_adapter(adapter, tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_factors_of_ranks_and_other_vectors_keep_their_bits() -> None:
    given = packed_adapter()
    modules = {
        name: replace(module, up=module.up * -1.1, grid=None) for name, module in given.unpacked().modules.items()
    }
    matrix = ParamName("mid.to_k.weight")
    dense = {name: delta if name == matrix else 1.3 * delta for name, delta in given.dense.items()}
    found = regridded(replace(given.unpacked(), modules=modules, dense=dense), given)
    assert abs(found.nbytes - given.nbytes) <= 8  # other signs have codes of other lengths
    for name in given.params:
        wanted = given.delta(name)
        assert wanted is not None
        factor = 1.0 if name == matrix else 1.3 if name in dense else -1.1
        torch.testing.assert_close(found.delta(name), factor * wanted, rtol=1e-3, atol=3e-2)
    assert torch.equal(found.dense[matrix], given.dense[matrix])


def _index(**changes: object) -> torch.Tensor:
    index = {"prefix": "", "modules": {"a": [[2, 3], "4"]}, "dense": {}} | changes
    return torch.from_numpy(np.frombuffer(zlib.compress(json.dumps(index).encode()), np.uint8).copy())


COUNTS = np.array([1, -7, 7, 0, 3], np.int16)


def _data(stream: bytes) -> torch.Tensor:
    """The unit 1 and a stream of counts."""
    return torch.tensor([63, 128, 0, *stream], dtype=torch.uint8)


DAMAGED = {
    "an index that is no zip": {INDEX: torch.zeros(9, dtype=torch.uint8)},
    "a bomb": {INDEX: torch.from_numpy(np.frombuffer(zlib.compress(b" " * 2**25), np.uint8).copy())},
    "an unknown width": {INDEX: _index(modules={"a": [[2, 3], "7"]})},
    "a vast shape": {INDEX: _index(modules={"a": [[2**30, 3], "4"]})},
    "a vector as a module": {INDEX: _index(modules={"a": [[3], "4"]})},
    "a shape of many dimensions": {INDEX: _index(dense={"a": [[8388608] * 25000, "4"]})},
    "a name that is no text": {INDEX: _index(dense={"\udc80": [[3], "4"]})},
    "a name of 5,000 characters": {INDEX: _index(dense={"a" * 5000: [[3], "4"]})},
    "a prefix of a block": {INDEX: _index(prefix="denoiser.down_blocks.0.")},
    "data that is cut off": {DATA: torch.zeros(1, dtype=torch.uint8)},
    "a unit of zero": {DATA: torch.zeros(6, dtype=torch.uint8)},
    "counts that are cut off": {DATA: _data(encode_counts(4, [COUNTS])[:-1])},
    "something behind the counts": {DATA: _data(encode_counts(4, [COUNTS]) + b"x")},
    "a value above its width": {DATA: _data(zlib.compress(b"\xff\xff\xff"))},
    "a bomb of counts": {INDEX: _index(modules={"a": [[2**23, 3], "4"]}), DATA: _data(zlib.compress(bytes(2**22)))},
    "a further tensor": {"x": torch.zeros(1, dtype=torch.uint8)},
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damage_is_one_line(what: str) -> None:
    good = {INDEX: _index(), DATA: _data(encode_counts(4, [COUNTS]))}
    decode_packed(good, Path("x"))
    with pytest.raises(AdapterError, match=r"^x: the packed LoRA is damaged") as caught:
        decode_packed(good | DAMAGED[what], Path("x"))
    assert "\n" not in str(caught.value)


def draw(width: int, count: int, seed: int = 0) -> np.ndarray:
    most = largest(width)
    return np.random.default_rng(seed).integers(-most, most, count, endpoint=True).astype(np.int16)


@settings(max_examples=60, deadline=None)
@given(
    width=st.sampled_from(WIDTHS), counts=st.lists(st.integers(0, 9), min_size=1, max_size=3), seed=st.integers(0, 9)
)
def test_counts_are_found_again(width: int, counts: list[int], seed: int) -> None:
    parts = [draw(width, count, seed) for count in counts]
    found, rest = decode_counts(width, sum(counts), encode_counts(width, parts) + b"more")
    assert np.array_equal(found, np.concatenate(parts))
    assert rest == b"more"
