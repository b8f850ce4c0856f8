"""The keys of a training file, one module per section; `lbm_lora.train.config` puts them together."""
