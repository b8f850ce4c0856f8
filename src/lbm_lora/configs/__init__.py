"""What can be asked for: one frozen config per verb. Imports no torch, so that `--help` is quick."""
