"""The time of a training step, and two proofs that training works: the measured part of docs/training.md."""
