"""The training loss: the objective and its random draws, the two terms, and the loss of a batch."""
