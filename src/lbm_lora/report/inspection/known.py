"""Fingerprints of denoisers that lbm-lora knows by name."""

from collections.abc import Mapping

KNOWN: Mapping[str, str] = {
    "d633083096e77cf8074fff4a311b3d5b": "the exact base of the bundled mini model",
    "d761118c2dae87aa85f5476be45c4058": "the bundled mini model",
}
"""Fingerprint -> name: the bundled model and its base, in the bf16 in which `lbm-lora base` writes it."""
