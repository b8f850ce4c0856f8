"""Cached latents: keyed by content, computed once, the same samples as without a cache."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from file_limits import largest_file
from safetensors.torch import save_file
from torch import Tensor

from lbm_lora.errors import DataError, OutputError
from lbm_lora.training.data.batches import BucketBatches, loader_of
from lbm_lora.training.data.dataset import Draw, PairDataset, open_data
from lbm_lora.training.data.latents import LatentCache, fill_latents
from lbm_lora.training.data.pairs import Pair
from lbm_lora.training.settings import DataSettings

PAIR = Pair(key="a", source=b"one", target=b"two", mask=None, size=(64, 64))


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


def test_the_name_is_a_hash_of_all_that_latents_depend_on(tmp_path: Path) -> None:
    cache = LatentCache(tmp_path, "vae")
    path = cache.path(PAIR, (64, 64))
    assert path.parent.parent == cache.folder == tmp_path / "latents"
    other_key = Pair(key="b", source=b"one", target=b"two", mask=b"mask", size=(1, 1))
    assert cache.path(other_key, (64, 64)) == path
    shifted = Pair(key="a", source=b"onet", target=b"wo", mask=None, size=(64, 64))
    exchanged = Pair(key="a", source=b"two", target=b"one", mask=None, size=(64, 64))
    others = [
        cache.path(PAIR, (64, 32)),
        cache.path(shifted, (64, 64)),
        cache.path(exchanged, (64, 64)),
        LatentCache(tmp_path, "other vae").path(PAIR, (64, 64)),
    ]
    assert len({path, *others}) == 5


def test_a_cache_that_is_a_file_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(OutputError, match=r"^the cached latents would be in .*cache, which is a file\. Choose another"):
        LatentCache(tmp_path / "cache", "vae")


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path, rand: Callable[..., Tensor]) -> None:
    cache = LatentCache(tmp_path, "vae")
    assert cache.load(PAIR, (64, 64)) is None
    batch = rand(2, 4, 8, 8).to(torch.bfloat16)
    cache.save(cache.path(PAIR, (64, 64)), batch[0], batch[1])
    loaded = cache.load(PAIR, (64, 64))
    assert loaded is not None
    assert loaded[0].dtype == torch.bfloat16
    assert torch.equal(loaded[0], batch[0])
    assert torch.equal(loaded[1], batch[1])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    cache = LatentCache(tmp_path, "vae")
    path = cache.path(PAIR, (64, 64))
    cache.save(path, torch.zeros(4, 8, 8), torch.zeros(4, 8, 8))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"\.safetensors is damaged: .* Delete it to compute its latents again"):
        cache.load(PAIR, (64, 64))


def test_every_pair_is_encoded_once_at_every_size(write_pairs: Callable[..., Path], tmp_path: Path) -> None:
    dataset = opened(write_pairs(count=5), image_size=(64, 96), image_size_prob=(0.5, 0.5))
    cache, encode = LatentCache(tmp_path / "cache", "vae"), Encoder()
    assert fill_latents(dataset, cache, encode) == 10
    assert encode.shapes == [
        (1, 3, side, side)
        for side in (64, 96)
        for _ in range(10)  # source and target of 5 pairs
    ]
    before = files(cache)
    assert len(before) == 10
    assert fill_latents(dataset, cache, encode) == 0
    assert len(encode.shapes) == 20
    assert files(cache) == before
    assert fill_latents(dataset, LatentCache(tmp_path / "cache", "other vae"), encode) == 10


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
        assert torch.equal(batch.latents[0][place], encode(plain.source[None])[0])
        assert torch.equal(batch.latents[1][place], encode(plain.target[None])[0])
        assert with_both.latents is not None
        assert torch.equal(with_both.latents[0], batch.latents[0][place])
        assert with_both.source is not None
        assert torch.equal(with_both.source, plain.source)
        assert batch.mask is not None
        assert plain.mask is not None
        assert torch.equal(batch.mask[place], plain.mask)
    moved = batch.to("meta")
    assert moved.latents is not None
    assert {latent.device.type for latent in moved.latents} == {"meta"}
    assert moved.source is None


def test_ranks_share_the_work(write_pairs: Callable[..., Path], tmp_path: Path) -> None:
    dataset = opened(write_pairs(count=5))
    whole, parts = LatentCache(tmp_path / "whole", "vae"), LatentCache(tmp_path / "parts", "vae")
    fill_latents(dataset, whole, Encoder())
    encoders = [Encoder(), Encoder()]
    assert [fill_latents(dataset, parts, encoders[rank], rank=rank, world=2) for rank in range(2)] == [3, 2]
    assert [data for _, data in sorted(files(parts).items())] == [data for _, data in sorted(files(whole).items())]


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
    assert fill_latents(dataset, cache, Encoder()) == 3, "what stands in has a size of its own"
    assert [item.key for item in dataset.skipped] == ["000"]
    sample = dataset.with_latents(cache, images=False)[Draw(0, 0, (64, 64))]
    assert (sample.index, [item.key for item in sample.skipped]) == (1, ["000"])
    assert sample.latents is not None
    assert sample.latents[0].shape == (4, 8, 8)


def test_a_disk_that_refuses_the_file_is_named_as_the_reason(tmp_path: Path) -> None:
    cache = LatentCache(tmp_path, "vae")
    path = cache.path(PAIR, (64, 64))
    with largest_file(100), pytest.raises(OutputError, match="File too large"):
        cache.save(path, torch.zeros(4, 8, 8), torch.zeros(4, 8, 8))
    assert files(cache) == {}


GOOD = torch.zeros(4, 8, 8)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (GOOD, torch.zeros(4, 4, 4)),
        (torch.zeros(4, 8, 4), torch.zeros(4, 8, 4)),
        (torch.zeros(256), torch.zeros(256)),
        (GOOD.int(), GOOD.int()),
        (GOOD, GOOD * torch.nan),
        (torch.zeros(4, 0, 0), torch.zeros(4, 0, 0)),
    ],
)
def test_latents_of_no_image_of_that_size_are_damage(tmp_path: Path, source: Tensor, target: Tensor) -> None:
    cache = LatentCache(tmp_path, "vae")
    path = cache.path(PAIR, (64, 64))
    path.parent.mkdir(parents=True)
    save_file({"source": source, "target": target}, path)
    with pytest.raises(DataError, match=r"is damaged: it does not hold finite latents of an image of 64x64\."):
        cache.load(PAIR, (64, 64))
