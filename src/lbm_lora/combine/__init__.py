"""Adapters to one adapter."""

from lbm_lora.combine.merge import (
    MergedBase,
    MergeOptions,
    Ranks,
    added_ranks,
    chosen_ranks,
    lossless_ranks,
    merge_adapters,
    merge_rule,
    merged_base,
)
from lbm_lora.combine.products import Products, Summand
from lbm_lora.combine.resize import Resized, resize_adapter
from lbm_lora.combine.shrink import Shrinking
