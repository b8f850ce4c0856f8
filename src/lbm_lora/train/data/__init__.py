"""The data of a training: pairs of pictures from folders or WebDataset shards, as batches of one size."""

from lbm_lora.shards.corrupt import Skipped
from lbm_lora.train.data.batches import BucketBatches
from lbm_lora.train.data.dataset import PairDataset
from lbm_lora.train.data.fill import fill_latents
from lbm_lora.train.data.latents import LatentCache
from lbm_lora.train.data.loader import make_loader
from lbm_lora.train.data.opening import open_data
from lbm_lora.train.data.sample import Batch, Draw, Sample, collate

__all__ = [
    "Batch",
    "BucketBatches",
    "Draw",
    "LatentCache",
    "PairDataset",
    "Sample",
    "Skipped",
    "collate",
    "fill_latents",
    "make_loader",
    "open_data",
]
