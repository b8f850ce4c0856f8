"""Adapters with what was measured on them."""

from pathlib import Path

import torch

from lbm_lora.adapter import Adapter, AdapterMetadata
from lbm_lora.api.adapters import RefinedAdapter, contents
from lbm_lora.fidelity.output_errors import OutputErrors
from lbm_lora.naming import ParamName
from lbm_lora.refinement.distill import DistillResult


def test_the_contents_of_an_adapter_make_one_with_a_measurement() -> None:
    dense = {ParamName("a.bias"): torch.ones(4)}
    adapter = Adapter({}, dense, AdapterMetadata(format="1"), "denoiser.", Path("x.safetensors"), torch.int8)
    errors = OutputErrors(typical=0.1, worst=0.2)
    refined = RefinedAdapter(**contents(adapter), outcome=DistillResult(before=errors, after=errors, step=0))
    assert contents(refined) == contents(adapter)
    assert refined.dense is dense
    assert refined.outcome.step == 0
    assert type(refined.cast(torch.float32)) is Adapter
