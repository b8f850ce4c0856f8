"""A LoRA that learns the tuned model's own outputs, at the ranks that it has (layer L5)."""
