"""Whether an adapter belongs on a model, and the lines that say why not."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, AdapterMetadata, LoraModule
from lbm_lora.apply import check_base, check_fit
from lbm_lora.checkpoint import fingerprint, open_checkpoint
from lbm_lora.errors import AdapterError, WrongBaseError
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.progress import LbmLoraWarning

Save = Callable[[str, Mapping[str, Tensor]], Path]
PATH = Path("lora.safetensors")
MODULES = {
    ModuleName(name): LoraModule(ModuleName(name), torch.ones(1, 6), torch.ones(4, 1), 1.0) for name in ("a", "b")
}
ADAPTER = Adapter(MODULES, {ParamName("a.bias"): torch.ones(4)}, path=PATH)
SHAPES: dict[ParamName, tuple[int, ...]] = {
    ParamName("a.weight"): (4, 6),
    ParamName("b.weight"): (4, 6),
    ParamName("a.bias"): (4,),
    ParamName("other.weight"): (9, 9),
}


def without(*names: str) -> dict[ParamName, tuple[int, ...]]:
    return {name: shape for name, shape in SHAPES.items() if name not in names}


def test_names_that_match_nothing() -> None:
    with pytest.raises(AdapterError) as caught:
        check_fit(ADAPTER, without("b.weight", "a.bias"))
    assert str(caught.value) == (
        "lora.safetensors: 2 of 3 parameters are not in the model: b.weight, a.bias. "
        "To apply the rest: allow_unmatched."
    )
    fit = check_fit(ADAPTER, without("b.weight", "a.bias"), allow_unmatched=True)
    assert (fit.matched, fit.unmatched) == (("a.weight",), ("b.weight", "a.bias"))


@pytest.mark.parametrize(("name", "shape"), [("b.weight", (4, 6, 1, 1)), ("b.weight", (6, 4)), ("a.bias", (1,))])
@pytest.mark.parametrize("allow_unmatched", [False, True])
def test_a_shape_that_differs(name: str, shape: tuple[int, ...], allow_unmatched: bool) -> None:
    with pytest.raises(AdapterError) as caught:
        check_fit(ADAPTER, {**SHAPES, ParamName(name): shape}, allow_unmatched=allow_unmatched)
    own = SHAPES[ParamName(name)]
    assert str(caught.value) == (
        f"{name}: lora.safetensors needs shape {own}, the model has {shape}. Is it an adapter for this network?"
    )


def base_tensors() -> dict[str, Tensor]:
    return {f"m{index}.weight": torch.full((2, 2), float(index)) for index in range(5)}


@pytest.fixture
def made_for(save: Save) -> Adapter:
    """An adapter that knows its base."""
    own = fingerprint(open_checkpoint(save("own.safetensors", base_tensors())).component())
    return Adapter(MODULES, {}, AdapterMetadata("1", own.digest, own.packed()), path=PATH)


@pytest.mark.parametrize("name", ["base.safetensors", "base.ckpt"])
@pytest.mark.parametrize("prefix", ["", "denoiser.", "model.denoiser."])
def test_its_own_base_in_any_file(save: Save, made_for: Adapter, name: str, prefix: str) -> None:
    path = save(name, {prefix + key: tensor for key, tensor in reversed(base_tensors().items())})
    check_base(made_for, open_checkpoint(path).component())


def test_another_base_is_refused_and_some_tensors_are_named(save: Save, made_for: Adapter) -> None:
    tensors = base_tensors()
    tensors["m1.weight"][0, 0] += 1
    tensors["m3.weight"] = tensors["m3.weight"].half()
    path = save("base.safetensors", tensors)
    base = open_checkpoint(path).component()
    with pytest.raises(WrongBaseError) as caught:
        check_base(made_for, base)
    assert str(caught.value) == (
        f"lora.safetensors was made from another base than {path}: 2 of 5 tensors differ: m1.weight, m3.weight. "
        "Give the base it was made from, or use allow_other_base."
    )
    with pytest.warns(LbmLoraWarning, match=r"was made from another base than .* 2 of 5 tensors differ"):
        check_base(made_for, base, allow_other_base=True)


def test_the_tuned_checkpoint_in_the_place_of_the_base_is_said(save: Save, made_for: Adapter) -> None:
    path = save("tuned.safetensors", {"a": torch.full((3,), 7.0), "b": torch.ones(2)})
    with open_checkpoint(path) as tuned:
        digest = fingerprint(tuned.component()).digest
        adapter = replace(made_for, metadata=replace(made_for.metadata, tuned_fingerprint=digest))
        with pytest.raises(WrongBaseError) as caught:
            check_base(adapter, tuned.component())
    assert str(caught.value) == (
        f"{path} is not the base of lora.safetensors, but the tuned checkpoint that it was extracted from. "
        "Are base and tuned swapped? Give the base it was made from, or use allow_other_base."
    )


def test_an_adapter_without_a_fingerprint_gives_a_warning(save: Save) -> None:
    base = open_checkpoint(save("base.safetensors", base_tensors())).component()
    for allow_other_base in (False, True):
        with pytest.warns(UserWarning, match="cannot be checked") as caught:
            check_base(ADAPTER, base, allow_other_base=allow_other_base)
        assert [str(warning.message) for warning in caught] == [
            "lora.safetensors does not say which base it was made from, so the base cannot be checked."
        ]


@pytest.mark.parametrize(("dtype", "word"), [(torch.bfloat16, "bf16"), (torch.float16, "fp16")])
def test_the_same_base_in_another_precision_is_named(save: Save, dtype: torch.dtype, word: str) -> None:
    tensors = {
        name: value.normal_(generator=torch.Generator().manual_seed(1)) for name, value in base_tensors().items()
    }
    own = fingerprint(open_checkpoint({name: value.to(dtype) for name, value in tensors.items()}).component())
    adapter = Adapter(MODULES, {}, AdapterMetadata("1", own.digest, own.packed()), path=PATH)
    base = open_checkpoint(save("base.safetensors", tensors)).component()
    with pytest.raises(WrongBaseError, match=rf"It was made from the same base in {word}; this one is fp32\. Give the"):
        check_base(adapter, base)
    other = {name: value + 1 for name, value in tensors.items()}
    with pytest.raises(WrongBaseError) as caught:
        check_base(adapter, open_checkpoint(save("other.safetensors", other)).component())
    assert "same base" not in str(caught.value)
