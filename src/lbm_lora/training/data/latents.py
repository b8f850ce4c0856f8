"""Cache of latents on disk, computed once.

A file holds the two latents of one pair at one size. Its name is a hash of everything that they depend on: the bytes of
both images, the size, and the VAE with its configuration. A changed image therefore gets new latents, runs and data
sets share the cache, and no entry is ever out of date.
"""

from pathlib import Path

import xxhash
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from lbm_lora.blocks import is_finite
from lbm_lora.errors import DataError
from lbm_lora.files import atomic_path, check_regular, check_writable
from lbm_lora.imaging.encoded import Size
from lbm_lora.training.data.pairs import Record

Latents = Float[Tensor, "batch channels h w"]


class LatentCache:
    """Cache of latents by content. `fill_latents` fills it, and `PairDataset.with_latents` reads it.

    Args:
        cache_dir: folder whose subfolder `latents/` holds the files.
        vae: identity of the encoder: the fingerprint of its weights, and how it is used.
    """

    def __init__(self, cache_dir: Path, vae: str) -> None:
        self.folder = cache_dir / "latents"
        if not self.folder.is_dir():
            check_writable(self.folder / "...", "the cached latents")
        self._vae = vae

    def path(self, pair: Record, size: Size) -> Path:
        digest = xxhash.xxh3_128(f"{self._vae}\n{size[0]}x{size[1]} {pair.source.nbytes}\n".encode())
        digest.update(pair.source.read())
        digest.update(pair.target.read())
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.safetensors"

    def load(self, pair: Record, size: Size) -> tuple[Latents, Latents] | None:
        """Return the latents of source and target, a batch of one each; None if they are not cached."""
        path = self.path(pair, size)
        try:
            check_regular(path)
            tensors = load_file(path)
            source, target = tensors["source"], tensors["target"]
        except FileNotFoundError:
            return None
        except (SafetensorError, KeyError, OSError) as error:
            raise DataError(f"{path} is damaged: {error}. Delete it to compute its latents again.") from None
        if source.shape != target.shape or not all(_is_latent(one, size) for one in (source, target)):
            raise DataError(
                f"{path} is damaged: it does not hold finite latents of an image of {size[0]}x{size[1]}. Delete it to "
                "compute its latents again."
            )
        return source[None], target[None]

    def save(self, path: Path, source: Tensor, target: Tensor) -> None:
        """Save the latents of a pair, [channels, h, w], under the name from `path`."""
        tensors = {name: value.detach().cpu().clone() for name, value in (("source", source), ("target", target))}
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(tensors))  # `save_file` would not say in an OSError why the disk refuses it


def _is_latent(values: Tensor, size: Size) -> bool:
    """Whether a tensor can be the latent of an image of a size in pixels, width by height."""
    if values.dim() != 3 or not values.is_floating_point() or not is_finite(values):
        return False
    _, height, width = values.shape
    return height > 0 and width > 0 and size[1] * width == size[0] * height and size[1] % height == 0
