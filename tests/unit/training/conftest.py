"""The small random LBM, its pairs and settings, for the tests of the train package."""

from nano import base_bf16, base_fp32, config, model, pairs, predict, settings

__all__ = ["base_bf16", "base_fp32", "config", "model", "pairs", "predict", "settings"]
