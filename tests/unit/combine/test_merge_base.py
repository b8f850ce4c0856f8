"""The base of a merged LoRA: a common one, a chain over tuned checkpoints in any order, or a refusal."""

from itertools import permutations
from pathlib import Path

import pytest
import torch

from lbm_lora.adapter import Adapter, AdapterMetadata, LoraModule
from lbm_lora.combine import Summand, merged_base
from lbm_lora.errors import WrongBaseError
from lbm_lora.naming import ModuleName
from lbm_lora.progress import LbmLoraWarning


def lora(base: str, tuned: str = "", *, name: str = "", scale: float = 1.0) -> Summand:
    module = LoraModule(ModuleName("a"), torch.ones(1, 2), torch.ones(2, 1), 1.0)
    metadata = AdapterMetadata("1", base, f"tensors of {base}", tuned)
    return Summand.of(Adapter({module.name: module}, {}, metadata, path=Path(f"{name or base}.safetensors")), scale)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_chain_in_any_order(order: tuple[int, ...]) -> None:
    loras = [lora("X", "Y", name="extraction"), lora("Y", "Z", name="further"), lora("Z", name="last")]
    found = merged_base([loras[index] for index in order])
    assert (found.fingerprint, found.tensors, found.tuned) == ("X", "tensors of X", "")
    assert found.labels == ("extraction.safetensors", "further.safetensors", "last.safetensors")


@pytest.mark.parametrize(("scale", "tuned"), [(1.0, "Z"), (0.5, "")])
def test_a_chain_of_extractions_leads_to_the_last_tuned(scale: float, tuned: str) -> None:
    assert merged_base([lora("Y", "Z"), lora("X", "Y", scale=scale)]).tuned == tuned


@pytest.mark.parametrize(
    "loras",
    [
        [lora("X"), lora("Y")],
        [lora("X", "Y"), lora("Z")],
        [lora("X", "Z"), lora("Y", "Z")],
        [lora("X", "Y"), lora("Y", "X")],
        [lora("W"), lora("X", "Y"), lora("Y", "X")],
        [lora("X", "Y"), lora("X", "Z"), lora("Y"), lora("Z")],
    ],
)
def test_bases_that_nothing_connects_are_refused_by_name(loras: list[Summand]) -> None:
    with pytest.raises(WrongBaseError, match=r"different bases: .*To merge them all the same: allow_other_base"):
        merged_base(loras)
    with pytest.warns(LbmLoraWarning, match="different bases"):
        found = merged_base(loras, allow_other_base=True)
    assert found.fingerprint == loras[0].adapter.metadata.base_fingerprint
    assert found.tuned == ""


def test_a_lora_that_says_nothing_is_said() -> None:
    with pytest.warns(LbmLoraWarning, match="does not say which base"):
        found = merged_base([lora("", name="old"), lora("X", "Y")])
    assert (found.fingerprint, found.tuned) == ("X", "")
    with pytest.warns(LbmLoraWarning, match="does not say which base"):
        assert merged_base([lora("", name="old")]).fingerprint == ""
