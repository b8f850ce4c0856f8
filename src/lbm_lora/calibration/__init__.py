"""Measure on images or other samples what an error in each layer's matrix costs in the network's output (layer L5b)."""

from lbm_lora.calibration.check_points import with_checks
from lbm_lora.calibration.collect import SAVE_EVERY, collect, collect_network
from lbm_lora.calibration.hooks import checkpointed, measure
from lbm_lora.calibration.layers import CalledLayer, find_layers, vectors
from lbm_lora.calibration.measure_checkpoint import Calibration, plan_statistics
from lbm_lora.calibration.output_norm import keeping_unmeasured, lora_norm, output_norm
from lbm_lora.calibration.statistics import FEW_IMAGES, CalibrationSettings, Origin, Statistics
from lbm_lora.calibration.statistics_file import load_statistics, save_statistics
from lbm_lora.calibration.sums import PartialFile, Sums
