"""Images to tensors and back: files, sizes, masks, metrics and comparison images. Knows no model."""
