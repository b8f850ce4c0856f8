"""The small random LBM, its pairs and settings, for the tests of training."""

from nano import base_bf16, base_fp32, config, model, move, pairs, predict, settings

__all__ = ["base_bf16", "base_fp32", "config", "model", "move", "pairs", "predict", "settings"]
