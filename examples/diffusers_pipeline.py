"""LBMPipeline as a pipeline of diffusers: batches, callbacks, and a folder that runs without lbm-lora.

python examples/diffusers_pipeline.py                                 the bundled mini model, seconds on one core
python examples/diffusers_pipeline.py base.safetensors lora.safetensors --device cuda
"""

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from PIL import Image

import lbm_lora
from lbm_lora import bundled

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("files", nargs="*", type=Path, metavar="FILE", help="a checkpoint, and a LoRA for it")
options.add_argument("--images", nargs="+", type=Path, default=sorted(bundled.PAIRS.glob("*.source.png"))[:4])
options.add_argument("--device", default="cpu")
options.add_argument(
    "--to", type=Path, default=Path("out/diffusers_pipeline"), help="folder for everything that is made"
)
given = options.parse_args()

model, *loras = given.files or [bundled.TUNED / "model.safetensors"]
pipe = lbm_lora.LBMPipeline.from_checkpoint(model, torch_dtype=torch.float32, device=given.device)
pipe.set_progress_bar_config(disable=True)
for lora in loras:
    pipe.load_lora_weights(lora)

# unet, vae and scheduler are components, and to(), enable_model_cpu_offload() and the rest work as in any pipeline.
print({name: type(part).__name__ for name, part in pipe.components.items()})


def looked_at(_pipe: DiffusionPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
    """Called after each step; what it returns goes on."""
    print(f"step {step}, timestep {float(timestep):.0f}, latents {tuple(tensors['latents'].shape)}")
    return tensors


images = [Image.open(path).convert("RGB") for path in given.images]
results = pipe(images, num_inference_steps=2, batch_size=2, seed=0, callback_on_step_end=looked_at).images

# The folder holds its own code: on another machine torch, diffusers and Pillow are enough to run it.
if loras:
    pipe.fuse_lora()
folder = given.to / "pipeline"
pipe.save_pretrained(folder)
plain = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True).to(given.device)
plain.set_progress_bar_config(disable=True)
again = plain(images, num_inference_steps=2, batch_size=2, seed=0).images

for path, one, other in zip(given.images, results, again, strict=True):
    one.save(given.to / f"{path.stem}_relit.png")
    assert one.tobytes() == other.tobytes()  # the same model
print(f"{len(results)} images in {given.to}; {folder} gives the same")
