"""Translate images with a base and a LoRA: `lbm-lora infer` with the documented default paths."""

import sys

from lbm_lora.cli.documented import run_script

if __name__ == "__main__":
    sys.exit(run_script("inference_native"))
