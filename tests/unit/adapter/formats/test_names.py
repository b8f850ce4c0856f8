"""The table of modules: complete, bijective in every spelling, and equal to the names of a real model."""

import pytest

from lbm_lora.adapter.formats.names import BY_FLAT, BY_FLAT_SGM, BY_SGM, SGM, flat
from lbm_lora.bundled import TUNED
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.naming import ModuleName, ParamName


def mini_names() -> list[ParamName]:
    with open_checkpoint(TUNED) as checkpoint:
        return list(checkpoint.component("denoiser."))


def test_the_table_is_bijective_in_every_spelling() -> None:
    count = 11 * (3 + 10 * 13) + 17 * 6 + 9  # attentions, resnets, and what stands alone
    assert len(SGM) == len(BY_SGM) == len(BY_FLAT) == len(BY_FLAT_SGM) == count
    for module, name in SGM.items():
        assert BY_SGM[name] == BY_FLAT_SGM[flat(name)] == BY_FLAT[flat(module)] == module
    assert not BY_FLAT.keys() & BY_FLAT_SGM.keys()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",) * 2,
        ("up_blocks.0.resnets.1.conv1", "output_blocks.1.0.in_layers.2"),
        ("up_blocks.1.resnets.0.conv_shortcut", "output_blocks.3.0.skip_connection"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
        ("conv_out", "out.2"),
    ],
)
def test_names_of_the_published_single_file(module: str, name: str) -> None:
    expected = name.replace("down_blocks.1.attentions.0", "input_blocks.4.1")
    assert SGM[ModuleName(module)] == expected
