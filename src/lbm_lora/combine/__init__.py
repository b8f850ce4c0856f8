"""Adapters to one adapter (layer L3)."""

from lbm_lora.combine.methods import DENSITY, combine_by
from lbm_lora.combine.products import Products, Summand, difference, product_norm
from lbm_lora.combine.shrink import Shrinking, Stored

__all__ = [
    "DENSITY",
    "Products",
    "Shrinking",
    "Stored",
    "Summand",
    "combine_by",
    "difference",
    "product_norm",
]
