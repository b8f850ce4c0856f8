"""The documented name of the helpers for loading an LBM and working with its LoRA. They are in the package now.

| earlier                              | now                                                  |
| ------------------------------------ | ---------------------------------------------------- |
| load an LBM or an exact base         | `lbm_lora.load_model(path)`                           |
| read its tensors without building it | `lbm_lora.open_checkpoint(path)`                      |
| read a LoRA file                     | `lbm_lora.load_adapter(path)`                         |
| apply it to a model, take it out     | `lbm_lora.inject` / `.eject`, `fuse_module` / `.unfuse` |
| extract, validate, run               | `lbm_lora.extract`, `validate`, `infer`               |
"""

from lbm_lora import ScaledAdapter, fuse_module, inject, load_adapter, load_model, open_checkpoint

__all__ = ["ScaledAdapter", "fuse_module", "inject", "load_adapter", "load_model", "open_checkpoint"]
