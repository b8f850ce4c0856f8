"""What an error in each layer's matrix costs in the network's output, measured on pictures (layer L5)."""

from lbm_lora.calibrate.checks import CHECKS, Check, check_states
from lbm_lora.calibrate.collect import SAVE_EVERY, collect
from lbm_lora.calibrate.files import load_statistics, save_statistics
from lbm_lora.calibrate.layers import Layer, find_layers
from lbm_lora.calibrate.measure import checkpointed, measure
from lbm_lora.calibrate.partial import PartialFile
from lbm_lora.calibrate.settings import FEW_IMAGES, Schedule, Settings, schedule_of
from lbm_lora.calibrate.statistics import Origin, Statistics
from lbm_lora.calibrate.sums import Sums

__all__ = [
    "CHECKS",
    "Check",
    "FEW_IMAGES",
    "SAVE_EVERY",
    "Layer",
    "Origin",
    "PartialFile",
    "Schedule",
    "Settings",
    "Statistics",
    "Sums",
    "check_states",
    "checkpointed",
    "collect",
    "find_layers",
    "load_statistics",
    "measure",
    "save_statistics",
    "schedule_of",
]
