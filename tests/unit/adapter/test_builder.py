"""An adapter that is collected in memory."""

import torch

from lbm_lora.adapter import AdapterBuilder, AdapterMetadata, LoraModule
from lbm_lora.naming import ModuleName, ParamName


def test_what_was_added_is_in_the_adapter_with_the_last_metadata() -> None:
    builder = AdapterBuilder("denoiser.", torch.bfloat16, AdapterMetadata(facts={"room": "000"}))
    one = LoraModule(ModuleName("a"), torch.ones(2, 6), torch.ones(4, 2), 2.0)
    builder.add_module(one)
    before = builder.adapter()
    builder.add_dense(ParamName("a.bias"), torch.ones(4))
    builder.metadata = AdapterMetadata(format="1")
    adapter = builder.adapter()
    assert (before.params, before.metadata.facts) == (["a.weight"], {"room": "000"})
    assert adapter.params == ["a.weight", "a.bias"]
    assert adapter.modules["a"] is one  # pyright: ignore[reportArgumentType]
    assert (adapter.prefix, adapter.path, adapter.metadata, adapter.dtype) == (
        "denoiser.",
        None,
        AdapterMetadata(format="1"),
        None,
    )


def test_an_adapter_in_eight_bits_knows_that_it_is_one() -> None:
    assert AdapterBuilder("", torch.int8, AdapterMetadata()).adapter().dtype == torch.int8
