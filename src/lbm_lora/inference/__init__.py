"""Translate images with a model and its LoRAs."""
