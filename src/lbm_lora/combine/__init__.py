"""Adapters to one adapter (layer L3)."""

from lbm_lora.combine.products import Products, Summand, difference, product_norm

__all__ = ["Products", "Summand", "difference", "product_norm"]
