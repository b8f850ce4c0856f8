"""Measure on images what an error in each layer's matrix costs in the network's output (layer L5)."""

from lbm_lora.calibration.collect import CHECK_POINTS, SAVE_EVERY, check_points, collect
from lbm_lora.calibration.hooks import checkpointed, measure
from lbm_lora.calibration.layers import CalledLayer, find_layers, vectors
from lbm_lora.calibration.output_norm import lora_norm, output_norm
from lbm_lora.calibration.statistics import FEW_IMAGES, CalibrationSettings, Origin, Statistics
from lbm_lora.calibration.statistics_file import load_statistics, save_statistics
from lbm_lora.calibration.sums import PartialFile, Sums

__all__ = [
    "CHECK_POINTS",
    "FEW_IMAGES",
    "SAVE_EVERY",
    "CalibrationSettings",
    "CalledLayer",
    "Origin",
    "PartialFile",
    "Statistics",
    "Sums",
    "check_points",
    "checkpointed",
    "collect",
    "find_layers",
    "load_statistics",
    "lora_norm",
    "measure",
    "output_norm",
    "save_statistics",
    "vectors",
]
