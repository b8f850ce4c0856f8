"""The small random LBM and settings of what learns in it, for the tests of the trainable package."""

from nano import base_bf16, base_fp32, model, move, predict, settings

__all__ = ["base_bf16", "base_fp32", "model", "move", "predict", "settings"]
