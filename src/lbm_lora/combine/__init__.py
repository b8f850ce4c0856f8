"""Adapters to one adapter (layer L3)."""

from lbm_lora.combine.products import Products, Summand, difference, product_norm
from lbm_lora.combine.shrink import Shrinking, Stored

__all__ = ["Products", "Shrinking", "Stored", "Summand", "difference", "product_norm"]
