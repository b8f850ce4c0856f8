"""Measure how close base + LoRA comes to the tuned model, by method and file size: docs/fidelity.md."""
