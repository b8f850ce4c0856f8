"""Keys of a training file for the data: where the pairs are, and how they are batched."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from lbm_lora.configs.values import SMALLEST_SIZE
from lbm_lora.training.settings.training_file import Section, Share, Text, check_shares


class DataSettings(Section):
    """Where the pairs are, and how they are batched."""

    train_shards: tuple[Text, ...] | None = None
    """Train on these WebDataset shards: paths or URLs; {000..009} is expanded."""
    validation_shards: tuple[Text, ...] | None = None
    """Validate on these shards. Default: no validation."""
    train_folder: Path | None = None
    """Train on this folder of pairs, instead of `train_shards`."""
    validation_folder: Path | None = None
    """Validate on this folder of pairs, instead of `validation_shards`."""
    source_key: Text = "source.jpg"
    """Ending of a sample's source image in a shard: 001.source.jpg. Any image extension matches."""
    target_key: Text = "target.jpg"
    """Ending of a sample's target image."""
    mask_key: Text | None = None
    """Ending of a sample's mask, such as mask.png: only its white pixels count in the loss. Default: no masks, every
    pixel counts."""
    image_size: tuple[Annotated[int, Field(ge=SMALLEST_SIZE, le=16384)], ...] = (512,)
    """Train at these sizes: square roots of pixel budgets. Each sample gets one of them per epoch."""
    image_size_prob: tuple[Share, ...] | None = None
    """Probability of each size; together 1. Default: uniform."""
    aspect_buckets: bool = True
    """Stretch pairs to the nearest of LBM's aspect ratios. false: to a square."""
    flip: bool = False
    """Mirror half of the pairs at random, source and target together."""
    random_crop: bool = False
    """Crop source and target identically to the bucket's aspect ratio, instead of stretching them."""
    cache_latents: bool = False
    """Encode every pair once and keep its latents in `cache_dir`. Not with flip and random_crop."""
    cache_dir: Path | None = None
    """Folder for cached latents and downloaded shards."""
    num_workers: Annotated[int, Field(ge=0, le=256)] = 0
    """Read pairs in this many worker processes. 0: in the training process itself."""
    shuffle: bool = True
    """Read the pairs in a new random order in every epoch."""
    allow_pipe: bool = False
    """Allow `pipe:` shards, which run a shell command."""
    max_corrupt: Share = 0.05
    """Do not start if a larger share of the samples than this is unreadable or incomplete."""

    @property
    def has_validation(self) -> bool:
        """Whether there are validation pairs."""
        return self.validation_shards is not None or self.validation_folder is not None

    @model_validator(mode="after")
    def _check_data(self) -> "DataSettings":
        self._check_places()
        if not self.image_size:
            raise ValueError("image_size is empty. Give at least one, as in [512]")
        if self.image_size_prob is not None:
            check_shares("image_size_prob", self.image_size_prob, "image_size", len(self.image_size))
        keys = [key for key in (self.source_key, self.target_key, self.mask_key) if key is not None]
        if len(set(keys)) < len(keys):
            raise ValueError(f"source_key, target_key and mask_key must differ, got {', '.join(keys)}")
        if self.cache_latents:
            changing = [key for key in ("flip", "random_crop") if getattr(self, key)]
            if changing:
                raise ValueError(
                    f"cache_latents cannot be used with {changing[0]}, which changes the pairs every epoch"
                )
            if self.cache_dir is None:
                raise ValueError("cache_latents needs cache_dir, the folder for the latents")
        return self

    def _check_places(self) -> None:
        if self.train_shards is None and self.train_folder is None:
            raise ValueError("no training data is given. Set train_shards or train_folder")
        for split in ("train", "validation"):
            if getattr(self, f"{split}_shards") is not None and getattr(self, f"{split}_folder") is not None:
                raise ValueError(f"{split}_shards and {split}_folder cannot both be given. Remove one of them")
        for key in ("train_shards", "validation_shards"):
            shards: tuple[str, ...] | None = getattr(self, key)
            if shards is None:
                continue
            if not shards:
                raise ValueError(f"{key} is empty. List at least one shard, or remove the key")
            piped = [shard for shard in shards if shard.startswith("pipe:")]
            if piped and not self.allow_pipe:
                raise ValueError(f"{key}: '{piped[0]}' runs a shell command. Allow it with allow_pipe: true")
