"""The keys of a training file, by sections; `train_config` puts them together."""
