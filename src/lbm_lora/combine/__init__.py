"""Adapters to one adapter (layer L3)."""

from lbm_lora.combine.merge import (
    MergedAdapter,
    MergeOptions,
    Ranks,
    added_ranks,
    chosen_ranks,
    lossless_ranks,
    merge_adapters,
    merge_rule,
)
from lbm_lora.combine.merge_base import MergedBase, merged_base
from lbm_lora.combine.methods import combine_by
from lbm_lora.combine.products import Products, Summand
from lbm_lora.combine.resize import Resized, resize_adapter
from lbm_lora.combine.shrink import Shrinking
