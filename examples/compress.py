"""A small LoRA of a fine-tuned model in one call, and what it is worth.

python examples/compress.py                                          the bundled mini model, under a minute on one core
python examples/compress.py relighting/ --size 50MB --images photos/
"""

import argparse
from pathlib import Path

import lbm_lora
from lbm_lora import bundled

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("tuned", nargs="?", type=Path, default=bundled.TUNED, help="the fine-tuned model or its folder")
options.add_argument("--size", default="2MB", help="largest size of the LoRA file")
options.add_argument("--images", default=str(bundled.PAIRS / "*.source.png"), help="photos that the model is used on")
options.add_argument("--count", type=int, default=4, help="calibrate on this many of them; 16 is better and slower")
options.add_argument("--to", type=Path, default=Path("out/compress"), help="folder for everything that is made")
given = options.parse_args()

# Makes the exact base where there is none, calibrates, extracts, and compares the images of base, LoRA and tuned model.
made = lbm_lora.compress(given.tuned, images=given.images, size=given.size, count=given.count, output=given.to)

print(f"{made.adapter}: {made.nbytes / 1e6:.2f} MB of {made.tuned_nbytes / 1e6:.1f} MB")
print(
    f"PSNR to the tuned model's images: {made.with_lora.mean_psnr:.1f} dB with it, {made.without.mean_psnr:.1f} without"
)
print(f"Look at {made.comparison} and {made.page}")

# Another size costs seconds: the statistics that calibration measured are used again.
half = lbm_lora.extract(made.base, given.tuned, calibration=made.statistics, max_size=f"{made.nbytes // 2000}KB")
half.save(given.to / "half.safetensors")
print(f"Half of that size: {(given.to / 'half.safetensors').stat().st_size / 1e6:.2f} MB")
