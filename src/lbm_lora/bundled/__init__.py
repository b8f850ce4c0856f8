"""Where the bundled mini model and sample pairs lie: a small LBM with LBM's exact topology, really trained.

Their origin, licences and measured quality: CREDITS.md and mini/results.json beside this file, `tools/` in the
repository.
"""

from pathlib import Path

ROOT = Path(__file__).parent
BACKBONE = ROOT / "mini" / "backbone"
"""A diffusers folder in SDXL's layout: unet/, vae/, scheduler/."""
TUNED = ROOT / "mini" / "tuned"
"""A fine-tuned LBM in the layout of the published repositories: config.yaml and model.safetensors."""
PAIRS = ROOT / "pairs"
"""Held-out pairs: NAME.source.png, NAME.target.png, NAME.mask.png."""
PHOTOS = ROOT / "photos"
"""A few free photographs."""
