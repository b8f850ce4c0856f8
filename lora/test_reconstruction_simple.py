"""Measure how well base + LoRA reproduces the tuned model: `lbm-lora validate` with the documented default paths."""

import sys

from lbm_lora.cli.documented import run_script

if __name__ == "__main__":
    sys.exit(run_script("test_reconstruction_simple"))
