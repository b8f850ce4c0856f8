"""Train a LoRA of fixed ranks on the tuned model's outputs."""
