"""Words and numbers that options and the code share. Imports no torch, so that `--help` is quick."""
