"""Latents that are computed once and kept on the disk.

A file holds the two latents of one pair at one size. Its name is a hash of all that they depend on: the bytes of
both pictures, the size, and the VAE. So a changed picture has other latents, runs and data sets share the cache, and
nothing in it is ever out of date.
"""

from pathlib import Path

import xxhash
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lbm_lora.atomic import atomic_path
from lbm_lora.errors import DataError
from lbm_lora.imaging.encoded import Size
from lbm_lora.train.data.parts import Pair

Latent = Float[Tensor, "channels h w"]


class LatentCache:
    """Latents by content; `fill_latents` fills it.

    Args:
        cache_dir: the files lie in `latents/` in it.
        vae: what tells the encoder apart from others: the fingerprint of its weights, and how it is used.
    """

    def __init__(self, cache_dir: Path, vae: str) -> None:
        self.folder = cache_dir / "latents"
        self._vae = vae

    def path(self, pair: Pair, size: Size) -> Path:
        """Where the latents of a pair are, or would be."""
        digest = xxhash.xxh3_128(f"{self._vae}\n{size[0]}x{size[1]} {len(pair.source)}\n".encode())
        digest.update(pair.source)
        digest.update(pair.target)
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.safetensors"

    def load(self, pair: Pair, size: Size) -> tuple[Latent, Latent] | None:
        """The latents of source and target, None where they are not there.

        Raises:
            DataError: the file is damaged.
        """
        path = self.path(pair, size)
        try:
            tensors = load_file(path)
            return tensors["source"], tensors["target"]
        except FileNotFoundError:
            return None
        except (SafetensorError, KeyError, OSError) as error:
            raise DataError(f"{path} holds no latents: {error}. Delete it, and they are computed again.") from None

    def save(self, path: Path, source: Latent, target: Latent) -> None:
        """Keep the latents of a pair under the name that `path` gives."""
        tensors = {name: value.detach().cpu().clone() for name, value in (("source", source), ("target", target))}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary)
