"""Extract a LoRA from a fine-tuned LBM: `lbm-lora extract` with the documented default paths."""

import sys

from lbm_lora.cli.documented import run_script

if __name__ == "__main__":
    sys.exit(run_script("extract_lora_native"))
