"""Keys of a training file, by section; `train_config` combines them."""
