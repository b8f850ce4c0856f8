"""Time and memory of the commands beside their references: `python -m benchmarks`, docs/performance.md."""
