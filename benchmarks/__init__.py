"""The benchmark suite: our commands beside their references, on a full-size pair of checkpoints.

`python -m benchmarks` makes the pair once, measures, and writes one dated file for each theme to `results/`;
`python -m benchmarks report` makes `docs/performance.md` of the newest ones.
"""
