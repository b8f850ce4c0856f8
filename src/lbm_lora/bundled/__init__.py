"""Paths of the bundled mini model and sample pairs: a small, trained LBM with LBM's exact topology.

Their origin, licences and measured quality are in CREDITS.md and mini/results.json next to this file; the scripts that
made them are in `tools/` in the repository.
"""

from pathlib import Path

ROOT = Path(__file__).parent
BACKBONE = ROOT / "mini" / "backbone"
"""Diffusers folder in SDXL's layout: unet/, vae/, scheduler/."""
TUNED = ROOT / "mini" / "tuned"
"""A fine-tuned LBM in the layout of the published repositories: config.yaml and model.safetensors."""
PAIRS = ROOT / "pairs"
"""Held-out pairs: NAME.source.png, NAME.target.png, NAME.mask.png."""
PHOTOS = ROOT / "photos"
"""A few freely licensed photographs."""
