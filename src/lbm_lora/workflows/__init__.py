"""One file per verb: a frozen config in, a typed result out (layer L6)."""
