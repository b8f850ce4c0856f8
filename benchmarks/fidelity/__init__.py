"""How close base + LoRA comes to the tuned model, by method and size: docs/fidelity.md."""
