"""Adapters to one adapter (layer L3)."""

from lbm_lora.combine.merge_base import MergedBase, merged_base
from lbm_lora.combine.methods import DENSITY, combine_by
from lbm_lora.combine.products import Products, Summand, difference, product_norm
from lbm_lora.combine.shrink import Shrinking, Stored

__all__ = [
    "DENSITY",
    "MergedBase",
    "Products",
    "Shrinking",
    "Stored",
    "Summand",
    "combine_by",
    "difference",
    "merged_base",
    "product_norm",
]
