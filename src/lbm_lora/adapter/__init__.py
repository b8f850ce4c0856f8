"""The LoRA as a frozen value, and its file format (layer L2a)."""

from lbm_lora.adapter.adapter_file import load_adapter, save_adapter
from lbm_lora.adapter.builder import AdapterBuilder
from lbm_lora.adapter.formats import Saved, Wishes
from lbm_lora.adapter.ledger import Ledger, LedgerRow, Status
from lbm_lora.adapter.lora_scale import LoraScale
from lbm_lora.adapter.metadata import FORMAT, AdapterMetadata, extraction_facts
from lbm_lora.adapter.module import Adapter, LoraModule, StoredDelta, common_dtype
from lbm_lora.adapter.outcome import Outcome, store_outcomes
from lbm_lora.adapter.writers import (
    METADATA_ROOM,
    AdapterWriter,
    PackedWriter,
    module_bytes,
    precision,
    precision_name,
    rank_bytes,
    stored_bytes,
)

__all__ = [
    "FORMAT",
    "METADATA_ROOM",
    "Adapter",
    "AdapterBuilder",
    "AdapterMetadata",
    "AdapterWriter",
    "Ledger",
    "LedgerRow",
    "LoraModule",
    "LoraScale",
    "Outcome",
    "PackedWriter",
    "Saved",
    "Status",
    "StoredDelta",
    "Wishes",
    "common_dtype",
    "extraction_facts",
    "load_adapter",
    "module_bytes",
    "precision",
    "precision_name",
    "rank_bytes",
    "save_adapter",
    "store_outcomes",
    "stored_bytes",
]
