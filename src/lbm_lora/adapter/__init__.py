"""The LoRA as a frozen value, and its file format."""

from lbm_lora.adapter.adapter_file import load_adapter, save_adapter
from lbm_lora.adapter.formats import Saved, Wishes
from lbm_lora.adapter.ledger import Ledger, LedgerRow, Status
from lbm_lora.adapter.lora_scale import LoraScale
from lbm_lora.adapter.metadata import FORMAT, AdapterMetadata, extraction_facts
from lbm_lora.adapter.module import Adapter, LoraModule, StoredDelta, common_dtype
from lbm_lora.adapter.writers import (
    METADATA_ROOM,
    AdapterBuilder,
    AdapterWriter,
    Outcome,
    PackedWriter,
    module_bytes,
    precision,
    precision_name,
    rank_bytes,
    store_outcomes,
    stored_bytes,
)
