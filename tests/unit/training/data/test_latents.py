"""Cached latents: keyed by content, computed once, the same samples as without a cache."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lbm_lora.errors import DataError
from lbm_lora.shards.samples import Part
from lbm_lora.training.data.batches import BucketBatches, fill_latents, loader_of
from lbm_lora.training.data.dataset import Draw, PairDataset, open_data
from lbm_lora.training.data.latents import LatentCache
from lbm_lora.training.data.pairs import Record
from lbm_lora.training.settings import DataSettings


def pair_of(folder: Path, source: bytes, target: bytes) -> Record:
    """Files with these bytes."""
    parts: list[Part] = []
    for role, data in (("source", source), ("target", target)):
        path = folder / f"{source.decode()}.{role}"
        path.write_bytes(data)
        parts.append(Part(path, 0, len(data)))
    return Record("a", parts[0], parts[1], None, (64, 64))


@pytest.fixture
def pair(tmp_path: Path) -> Record:
    return pair_of(tmp_path, b"one", b"two")


class Encoder:
    """Means of 8x8 pixels in four channels, and what it was called with."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.shapes.append(tuple(images.shape))
        small = torch.nn.functional.avg_pool2d(images, 8)
        return torch.cat([small, small.mean(dim=1, keepdim=True)], dim=1).to(torch.bfloat16)


def opened(folder: Path, **settings: object) -> PairDataset:
    values: dict[str, Any] = {"train_folder": folder, "image_size": (64,), "max_corrupt": 0.5, **settings}
    return open_data(DataSettings(**values), "train", seed=0)


def files(cache: LatentCache) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in cache.folder.rglob("*") if path.is_file()}


def test_the_name_is_a_hash_of_all_that_latents_depend_on(tmp_path: Path, pair: Record) -> None:
    cache = LatentCache(tmp_path, "vae")
    path = cache.path(pair, (64, 64))
    assert path.parent.parent == cache.folder == tmp_path / "latents"
    assert cache.path(replace(pair, key="b", size=(1, 1)), (64, 64)) == path
    others = [
        cache.path(pair, (64, 32)),
        cache.path(pair_of(tmp_path, b"onet", b"wo"), (64, 64)),
        cache.path(pair_of(tmp_path, b"two", b"one"), (64, 64)),
        LatentCache(tmp_path, "other vae").path(pair, (64, 64)),
    ]
    assert len({path, *others}) == 5


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path, pair: Record, rand: Callable[..., Tensor]) -> None:
    cache = LatentCache(tmp_path, "vae")
    assert cache.load(pair, (64, 64)) is None
    batch = rand(2, 4, 8, 8).to(torch.bfloat16)
    cache.save(cache.path(pair, (64, 64)), batch[0], batch[1])
    loaded = cache.load(pair, (64, 64))
    assert loaded is not None
    assert loaded[0].dtype == torch.bfloat16
    assert torch.equal(loaded[0], batch[:1])
    assert torch.equal(loaded[1], batch[1:])


def test_every_pair_is_encoded_once_at_every_size(write_pairs: Callable[..., Path], tmp_path: Path) -> None:
    dataset = opened(write_pairs(count=5), image_size=(64, 96), image_size_prob=(0.5, 0.5))
    cache, encode = LatentCache(tmp_path / "cache", "vae"), Encoder()
    fill_latents(dataset, cache, encode)
    assert encode.shapes == [
        (1, 3, side, side)
        for side in (64, 96)
        for _ in range(10)  # source and target of 5 pairs
    ]
    before = files(cache)
    assert len(before) == 10
    fill_latents(dataset, cache, encode)
    assert len(encode.shapes) == 20
    assert files(cache) == before
    fill_latents(dataset, LatentCache(tmp_path / "cache", "other vae"), encode)
    assert len(encode.shapes) == 40


def test_samples_hold_what_the_encoder_gives(write_pairs: Callable[..., Path], tmp_path: Path) -> None:
    dataset = opened(write_pairs(count=3, mask=True), mask_key="mask.png")
    cache, encode = LatentCache(tmp_path / "cache", "vae"), Encoder()
    fill_latents(dataset, cache, encode)
    cached = dataset.with_latents(cache, images=False)
    both = dataset.with_latents(cache, images=True)
    (batch,) = loader_of(cached, BucketBatches(cached, 3, seed=0).epoch(0))
    assert batch.source is None
    assert batch.target is None
    assert batch.latents is not None
    for place, index in enumerate(batch.indices):
        plain, with_both = dataset[index], both[index]
        assert plain.source is not None
        assert plain.target is not None
        assert torch.equal(batch.latents[0][place], encode(plain.source)[0])
        assert torch.equal(batch.latents[1][place], encode(plain.target)[0])
        assert with_both.latents is not None
        assert torch.equal(with_both.latents[0][0], batch.latents[0][place])
        assert with_both.source is not None
        assert torch.equal(with_both.source, plain.source)
        assert batch.mask is not None
        assert plain.mask is not None
        assert torch.equal(batch.mask[place], plain.mask[0])
    moved = batch.to("meta")
    assert moved.latents is not None
    assert {latent.device.type for latent in moved.latents} == {"meta"}
    assert moved.source is None


def test_what_stands_in_for_a_damaged_sample_is_cached_too(
    write_pairs: Callable[..., Path], tmp_path: Path, png: Callable[..., bytes]
) -> None:
    folder = write_pairs(count=3)
    for number in (1, 2):
        (folder / f"00{number}.source.png").write_bytes(png(number, (96, 40)))
        (folder / f"00{number}.target.png").write_bytes(png(number + 2, (96, 40)))
    dataset = opened(folder)
    (folder / "000.source.png").unlink()
    cache = LatentCache(tmp_path / "cache", "vae")
    fill_latents(dataset, cache, Encoder())
    assert len(files(cache)) == 3, "what stands in has a size of its own"
    assert [item.key for item in dataset.skipped] == ["000"]
    sample = dataset.with_latents(cache, images=False)[Draw(0, 0, (64, 64))]
    assert (sample.indices, [item.key for item in sample.skipped]) == ((1,), ["000"])
    assert sample.latents is not None
    assert sample.latents[0].shape == (1, 4, 8, 8)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (torch.zeros(4, 8, 8), torch.zeros(4, 4, 4)),
        (torch.zeros(256), torch.zeros(256)),
        (torch.zeros(4, 8, 8), torch.full((4, 8, 8), torch.nan)),
    ],
)
def test_latents_of_no_image_of_that_size_are_damage(
    tmp_path: Path, pair: Record, source: Tensor, target: Tensor
) -> None:
    cache = LatentCache(tmp_path, "vae")
    path = cache.path(pair, (64, 64))
    path.parent.mkdir(parents=True)
    save_file({"source": source, "target": target}, path)
    with pytest.raises(DataError, match=r"is damaged: it does not hold finite latents of an image of 64x64\."):
        cache.load(pair, (64, 64))
