"""Images to tensors and back: files, sizes, masks, metrics and comparison pictures. Knows no model."""
