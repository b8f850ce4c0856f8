"""Measure time and memory of the commands against references: `python -m benchmarks`, docs/performance.md."""
