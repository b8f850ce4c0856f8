"""A folder of images that survives damaged files, and goes on where it was stopped.

python examples/batch.py                                              the bundled mini model, seconds on one core
python examples/batch.py base.safetensors lora.safetensors --images photos/ --to relit/
"""

import argparse
from pathlib import Path

import lbm_lora
from lbm_lora import bundled

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("files", nargs="*", type=Path, metavar="FILE", help="a checkpoint, and a LoRA for it")
options.add_argument("--images", default=str(bundled.PAIRS / "*.source.png"), help="folder or glob")
options.add_argument("--to", type=Path, default=Path("out/batch"), help="folder for the results")
given = options.parse_args()


class Printed:
    """A listener of long work: anything with these three methods will do (`lbm_lora.Progress`)."""

    def start(self, total: int, what: str) -> None:
        """A phase begins."""
        print(f"{what}: {total}")

    def advance(self, n: int = 1) -> None:
        """Parts of it are done."""

    def note(self, message: str) -> None:
        """A line to be read."""
        print(f"  {message}")


model, *loras = given.files or [bundled.TUNED / "model.safetensors"]
done = lbm_lora.infer(
    model,
    given.images,
    given.to,
    loras,
    skip_existing=True,  # run it again after a stop: only what is missing is made
    progress=Printed(),
)
print(f"{len(done.outputs)} images written to {given.to}, {done.present} were there already")
for image in done.failed:  # left out, and the others are written; fail_fast=True stops at the first one
    print(f"failed: {image.reason}")
