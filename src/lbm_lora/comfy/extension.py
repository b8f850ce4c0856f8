# pyright: reportMissingImports=false, reportUntypedBaseClass=false
"""The entry point that ComfyUI calls."""

from typing import Any

from comfy_api.v0_0_2 import ComfyExtension

from lbm_lora.comfy import checkpoint_nodes, lora_nodes, model_nodes


class LbmLoraExtension(ComfyExtension):
    """The nodes of lbm-lora."""

    async def get_node_list(self) -> list[Any]:
        """Return the node classes."""
        return [*model_nodes.NODES, *checkpoint_nodes.NODES, *lora_nodes.NODES]


async def comfy_entrypoint() -> LbmLoraExtension:
    """Return the extension; ComfyUI finds this function in the pack's `__init__.py`."""
    return LbmLoraExtension()
