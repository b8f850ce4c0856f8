"""The program `lbm-lora` as `python -m lbm_lora`."""

import sys

from lbm_lora.cli.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
