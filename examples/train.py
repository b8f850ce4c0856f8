"""A LoRA trained on pairs of images, and tried out.

    python examples/train.py                                              the bundled pairs, about a minute on one core
    python examples/train.py pairs/ --base base.safetensors --size 512 --steps 2000

Needs `pip install "lbm-lora[train]"`. Thirty steps on twelve pairs show that it runs, not how good it gets.
"""

import argparse
from pathlib import Path

from PIL import Image

import lbm_lora
from lbm_lora import bundled

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument(
    "pairs", nargs="?", type=Path, default=bundled.PAIRS, help="folder of X.source.png and X.target.png"
)
options.add_argument("--base", type=Path, help="the checkpoint to train on; by default the mini model's base is made")
options.add_argument("--size", type=int, default=128, help="square root of the pixel budget")
options.add_argument("--steps", type=int, default=30)
options.add_argument("--batch_size", type=int, default=4)
options.add_argument("--to", type=Path, default=Path("out/train"), help="folder for everything that is made")
given = options.parse_args()

given.to.mkdir(parents=True, exist_ok=True)
base = given.base
if base is None:
    base = given.to / "base.safetensors"
    lbm_lora.make_base(base, config_path=bundled.TUNED / "config.yaml")

# Every key of a training file is an option. The run's folder holds the LoRA, images of the validation pairs, and the
# state to resume from: the same call again goes on.
run = lbm_lora.train(
    train_folder=given.pairs,
    validation_folder=given.pairs,
    validation_samples=4,
    image_size=given.size,
    base_model_path=base,
    lora_rank=8,
    train_biases=True,
    train_norms=True,
    batch_size=given.batch_size,
    learning_rate=1e-3,
    max_steps=given.steps,
    save_interval=given.steps,
    num_steps=1,
    precision="32",  # a GPU takes bf16-mixed
    base_dtype="float",
    gradient_checkpointing=False,  # the default, True, is slower and takes much less memory
    logger="csv",
    save_ckpt_path=given.to / "run",
)
print(f"{run.last}: {run.step} steps, loss {run.loss:.4f}")

pipe = lbm_lora.LBMPipeline.from_checkpoint(base)
pipe.load_lora_weights(run.last)
image = Image.open(min(given.pairs.glob("*.source.*"))).convert("RGB")
pipe(image).images[0].save(given.to / "trained.png")
print(f"Look at {given.to / 'trained.png'} and {run.folder / 'pictures'}")
