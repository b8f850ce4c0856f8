"""Training data: pairs of images from folders or WebDataset shards, in batches of one size."""

from lbm_lora.training.data.batches import BucketBatches, loader_of
from lbm_lora.training.data.dataset import Batch, Draw, PairDataset, Sample, collate, open_data
from lbm_lora.training.data.latents import LatentCache, fill_latents

__all__ = [
    "Batch",
    "BucketBatches",
    "Draw",
    "LatentCache",
    "PairDataset",
    "Sample",
    "collate",
    "fill_latents",
    "loader_of",
    "open_data",
]
