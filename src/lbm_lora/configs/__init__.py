"""The options of each verb: one frozen config per verb. Imports no torch, so that `--help` is quick."""
