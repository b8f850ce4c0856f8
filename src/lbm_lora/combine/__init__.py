"""Adapters to one adapter (layer L3)."""

from lbm_lora.combine.merge import TOLERANCE, Ranks, added_ranks, chosen_ranks, lossless_ranks, store_merged
from lbm_lora.combine.merge_base import MergedBase, merged_base
from lbm_lora.combine.merge_options import merge_rule
from lbm_lora.combine.merged_adapter import MergedAdapter, merge_adapters
from lbm_lora.combine.methods import DENSITY, combine_by
from lbm_lora.combine.products import Products, Summand, difference, product_norm
from lbm_lora.combine.resize import Resized, resize_adapter
from lbm_lora.combine.shrink import Shrinking

__all__ = [
    "DENSITY",
    "TOLERANCE",
    "MergedAdapter",
    "MergedBase",
    "Products",
    "Ranks",
    "Resized",
    "Shrinking",
    "Summand",
    "added_ranks",
    "chosen_ranks",
    "combine_by",
    "difference",
    "lossless_ranks",
    "merge_adapters",
    "merge_rule",
    "merged_base",
    "product_norm",
    "resize_adapter",
    "store_merged",
]
