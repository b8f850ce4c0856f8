# pyright: reportMissingImports=false
"""Run in ComfyUI's folder, with its Python: load an LBM in part and in another dtype, and compare what it computes.

python partial_load.py BASE LORA
"""

import sys
from pathlib import Path

sys.argv, given = [sys.argv[0], "--cpu"], sys.argv[1:]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import torch  # noqa: E402

from lbm_lora.adapter import LoraScale  # noqa: E402
from lbm_lora.comfy.adapters import with_lora  # noqa: E402
from lbm_lora.comfy.network import load  # noqa: E402

DEVICE = torch.device("cpu")
NOISE = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def computed(model: object) -> torch.Tensor:
    return model.model.apply_model(NOISE, torch.tensor([1.0]))  # pyright: ignore[reportAttributeAccessIssue]


base, _ = load(Path(given[0]), "fp32")
before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
adapted = with_lora(base, Path(given[1]), LoraScale(1.0))
plain = computed(base)

adapted.patch_model(device_to=DEVICE)
complete = computed(adapted)
adapted.unpatch_model(DEVICE)
assert (complete - plain).abs().mean() > 0.01, "the LoRA changes nothing"

adapted.load(DEVICE, lowvram_model_memory=1_000_000)
cast = [name for name, layer in adapted.model.named_modules() if getattr(layer, "comfy_cast_weights", False)]
functions = sum(len(getattr(layer, "weight_function", ())) for layer in adapted.model.modules())
assert len(cast) > 500, f"{len(cast)} layers are streamed"
assert functions > 300, f"{functions} layers compute their LoRA when they are streamed"
streamed = computed(adapted)
adapted.unpatch_model(DEVICE)
assert torch.allclose(streamed, complete, atol=1e-4), (streamed - complete).abs().max()
assert all(torch.equal(tensor, before[name]) for name, tensor in base.model.state_dict().items())
assert torch.equal(computed(base), plain)

halved, _ = load(Path(given[0]), "bf16")
assert halved.model.diffusion_model.conv_in.weight.dtype == torch.bfloat16
assert torch.allclose(computed(halved), plain, atol=0.1), (computed(halved) - plain).abs().max()
print("ok")
