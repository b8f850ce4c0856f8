"""Measure on images or other samples what an error in each layer's matrix costs in the network's output."""

from lbm_lora.calibration.collect import collect, collect_network
from lbm_lora.calibration.layers import CalledLayer, find_layers
from lbm_lora.calibration.measure_checkpoint import Calibration, plan_statistics
from lbm_lora.calibration.output_norm import keeping_unmeasured, lora_norm, output_norm
from lbm_lora.calibration.statistics import CalibrationSettings, Origin, Statistics
from lbm_lora.calibration.statistics_file import load_statistics, save_statistics
from lbm_lora.calibration.sums import PartialFile, Sums
