"""The content hash: equal for equal tensors whatever the file, another one for any other bit, dtype, shape or name."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lbm_lora.checkpoint import Fingerprint, FingerprintBuilder, differing, fingerprint, open_checkpoint
from lbm_lora.naming import ParamName

Save = Callable[[str, Mapping[str, Tensor]], Path]
TENSORS = {
    "a.weight": torch.arange(12.0).reshape(3, 4),
    "a.bias": torch.arange(3.0).bfloat16(),
    "counter": torch.tensor(7),
    "empty": torch.zeros(0, 3).half(),
    "mask": torch.tensor([True, False, True]),
}


def of(tensors: Mapping[str, Tensor]) -> Fingerprint:
    builder = FingerprintBuilder()
    for name, tensor in tensors.items():
        builder.add(ParamName(name), tensor)
    return builder.build()


def test_the_digest_of_known_tensors_is_part_of_the_format() -> None:
    assert of(TENSORS).digest == "398ae13046c53270986893b9e267e403"
    assert of(TENSORS).packed() == "3051ac94e7fcfe24de7f16600ae252e4a8392144"


@pytest.mark.parametrize("prefix", ["", "denoiser.", "model.denoiser.", "module.model.denoiser._orig_mod."])
@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
def test_container_order_and_prefix_do_not_matter(save: Save, name: str, prefix: str) -> None:
    expected = of(TENSORS)
    for keys in (list(TENSORS), list(reversed(TENSORS))):
        path = save(name, {prefix + key: TENSORS[key] for key in keys})
        assert fingerprint(open_checkpoint(path).component()) == expected


CHANGES: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "one bit": lambda t: t["a.bias"].view(torch.int16)[1].bitwise_xor_(1),
    "the sign of a zero": lambda t: t["a.weight"][0, 0].neg_(),
    "dtype, same bytes": lambda t: t.update({"a.bias": t["a.bias"].view(torch.float16)}),
    "shape, same bytes": lambda t: t.update({"a.weight": t["a.weight"].reshape(4, 3)}),
    "shape of an empty tensor": lambda t: t.update({"empty": torch.zeros(0, 4).half()}),
    "counter": lambda t: t["counter"].add_(1),
    "a name": lambda t: t.update({"b.bias": t.pop("a.bias")}),
    "one more": lambda t: t.update({"z": torch.zeros(0)}),
    "one less": lambda t: t.__delitem__("mask"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_changes_the_digest(change: str) -> None:
    tensors = {name: tensor.clone() for name, tensor in TENSORS.items()}
    assert of(tensors) == of(TENSORS)
    CHANGES[change](tensors)
    assert of(tensors).digest != of(TENSORS).digest


def test_the_tensors_that_differ_are_named() -> None:
    packed = of(TENSORS).packed()
    assert differing(packed, of(TENSORS)) == []
    changed = {name: tensor.clone() for name, tensor in TENSORS.items()}
    changed["mask"][0], changed["a.weight"][2, 3] = False, 0
    assert differing(packed, of(changed)) == ["a.weight", "mask"]
