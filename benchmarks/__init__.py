"""Three benchmarks over shared modules, each with a page in `docs/` that is made of its newest result files.

- `python -m benchmarks`: time and memory of the commands beside their references, on a full-size pair.
- `python -m benchmarks.fidelity`: how close base + LoRA comes to the tuned model, by method and size.
- `python -m benchmarks.training`: the time of a training step, and two proofs that training works.
"""
