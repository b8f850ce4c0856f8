"""The Hugging Face hub: names of repositories as paths, their files as local ones, and LoRAs published there."""

from lbm_lora.hub.fetch import load_adapter, local_checkpoint, local_lora, open_checkpoint
from lbm_lora.hub.names import HubName, hub_name

__all__ = [
    "HubName",
    "hub_name",
    "load_adapter",
    "local_checkpoint",
    "local_lora",
    "open_checkpoint",
]
