"""The loss of a training: the objective with its draws, the two terms, and the loss of a batch."""
