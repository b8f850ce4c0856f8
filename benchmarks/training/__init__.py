"""Benchmark a training step, and show that training works: the measured part of docs/training.md."""
