"""Entry point of a clone of this repository in ComfyUI's custom_nodes: that of the pack in integrations/comfyui.

The import itself does nothing, for tools that take this folder for a package, as pytest does. The package that is
installed is src/lbm_lora.
"""

from typing import Any


async def comfy_entrypoint() -> Any:
    """Return the extension of the pack; ComfyUI finds this function by its name."""
    from .integrations.comfyui import comfy_entrypoint as entrypoint_of_pack

    return await entrypoint_of_pack()
