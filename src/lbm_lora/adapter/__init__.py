"""The LoRA as a frozen value and its serial form (layer L2)."""

from lbm_lora.adapter.files import AdapterWriter, load_adapter, save_adapter
from lbm_lora.adapter.ledger import Ledger, LedgerRow, Status
from lbm_lora.adapter.metadata import FORMAT, AdapterMetadata, extraction_facts
from lbm_lora.adapter.module import Adapter, LoraModule

__all__ = [
    "FORMAT",
    "Adapter",
    "AdapterMetadata",
    "AdapterWriter",
    "Ledger",
    "LedgerRow",
    "LoraModule",
    "Status",
    "extraction_facts",
    "load_adapter",
    "save_adapter",
]
