"""From an image to its translation, and how near the outputs of several models are to each other."""
