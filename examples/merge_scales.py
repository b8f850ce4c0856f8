"""Several LoRAs on one pipeline, each with its own scale, changed while it runs; a grid of the results.

python examples/merge_scales.py                                       the bundled mini model, seconds on one core
python examples/merge_scales.py base.safetensors a.safetensors b.safetensors --image photo.jpg
"""

import argparse
from pathlib import Path

from PIL import Image

import lbm_lora
from lbm_lora import bundled

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("files", nargs="*", type=Path, metavar="FILE", help="base, first LoRA, second LoRA")
options.add_argument("--image", type=Path, default=min(bundled.PAIRS.glob("*.source.png")))
options.add_argument("--scales", nargs="+", type=float, default=[0.0, 0.5, 1.0], help="of each LoRA")
options.add_argument("--to", type=Path, default=Path("out/merge_scales"), help="folder for everything that is made")
given = options.parse_args()

given.to.mkdir(parents=True, exist_ok=True)
if given.files:
    base, first, second = given.files
else:
    # Two LoRAs of one fine-tune: what it did to the attention layers, and all the rest
    tuned = bundled.TUNED / "model.safetensors"
    made = lbm_lora.make_base(given.to / "base.safetensors", config_path=bundled.TUNED / "config.yaml")
    base = made.base.safetensors
    first = lbm_lora.extract(base, tuned, rank=32, include="attn")
    second = lbm_lora.extract(base, tuned, rank=32, exclude="attn")

pipe = lbm_lora.LBMPipeline.from_checkpoint(base, torch_dtype="float")
pipe.set_progress_bar_config(disable=True)
pipe.load_lora_weights(first, adapter_name="first")
pipe.load_lora_weights(second, adapter_name="second")

# Scales are live: the weights of the base stay as they are, and nothing is loaded again.
image = Image.open(given.image).convert("RGB")
grid = Image.new("RGB", (image.width * len(given.scales), image.height * len(given.scales)))
for row, of_first in enumerate(given.scales):
    for column, of_second in enumerate(given.scales):
        pipe.set_adapters(["first", "second"], [of_first, of_second])
        grid.paste(pipe(image, seed=0).images[0], (column * image.width, row * image.height))
grid.save(given.to / "grid.png")
print(f"{given.to / 'grid.png'}: scales {given.scales} of the first LoRA downwards, of the second to the right")

# Merged for good: one checkpoint with both in its weights, for any program that loads LBM checkpoints.
lbm_lora.fuse(base, [first, second], lora_scale=[1.0, 0.5], save_to=given.to / "merged.safetensors")
print(f"{given.to / 'merged.safetensors'}: the first at 1, the second at 0.5")
