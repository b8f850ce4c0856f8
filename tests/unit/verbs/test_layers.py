"""`layers`: what patterns select, and how large a LoRA of it is."""

import pytest
from safetensors.torch import load_file

from lbm_lora.errors import PatternError
from lbm_lora.verbs.extract import extract
from lbm_lora.verbs.layers import layers
from standins import Lbm


def test_sizes_are_those_of_an_extraction(lbm: Lbm) -> None:
    result = layers(lbm.base, rank=4, conv_rank=2)
    lora = extract(lbm.base, lbm.tuned, rank=4, conv_rank=2, dense=False)
    assert len(result.layers) == result.total == len(lora.modules)
    assert result.lora_parameters == sum(one.up.numel() + one.down.numel() for one in lora.modules.values())
    assert result.file_bytes == 2 * result.lora_parameters
    more = layers(load_file(lbm.base), rank=8, conv_rank=2)
    # weight, gradient and two averages of AdamW, 4 bytes each
    assert more.training_bytes - result.training_bytes == 16 * (more.lora_parameters - result.lora_parameters)


def test_patterns_select(lbm: Lbm) -> None:
    names = {layer.name for layer in layers(lbm.base, ("attn1", "re:^conv_(in|out)$")).layers}
    assert {"conv_in", "conv_out"} < names
    assert all("attn1" in name or name.startswith("conv_") for name in names)
    assert layers(lbm.base, "denoiser.mid_block").layers == layers(lbm.base, "mid_block").layers
    with pytest.raises(PatternError, match=r"Nearest: .*attn1"):
        layers(lbm.base, "atn1")
