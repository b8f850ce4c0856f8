"""Make the exact base from SDXL and LBM's config.yaml: `lbm-lora base` with the documented default paths."""

import sys

from lbm_lora.cli.documented import run_script

if __name__ == "__main__":
    sys.exit(run_script("create_exact_base_model"))
