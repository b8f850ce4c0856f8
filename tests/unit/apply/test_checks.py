"""LoRAs of a command: read, checked against their base, and limited to what fits."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lbm_lora.adapter import Adapter, AdapterMetadata, LoraModule, save_adapter
from lbm_lora.apply import check_base, check_fit, fitting_adapters
from lbm_lora.checkpoint import Component, fingerprint, open_checkpoint
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


NAMES = ("b.attn1.to_q", "b.attn2.to_out.0", "b.conv_in")


class Notes:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def start(self, total: int, what: str) -> None: ...

    def advance(self, n: int = 1) -> None: ...

    def note(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def base(tmp_path: Path) -> Component:
    """Three weights and one bias under `denoiser.`."""
    tensors = {f"denoiser.{name}.weight": torch.randn(4, 6) for name in NAMES}
    save_file(tensors | {"denoiser.b.attn2.to_out.0.bias": torch.zeros(4)}, tmp_path / "base.safetensors")
    return open_checkpoint(tmp_path / "base.safetensors").component()


Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, base: Component) -> Make:
    """Write an adapter for the base (or one that says another), and return its path."""

    def write(file: str, *names: str, bias: bool = False, made_from: str | None = None) -> Path:
        modules = {
            ModuleName(name): LoraModule(ModuleName(name), torch.ones(2, 6), torch.ones(4, 2), 2.0) for name in names
        }
        dense = {ParamName("b.attn2.to_out.0.bias"): torch.ones(4)} if bias else {}
        found = fingerprint(base)
        metadata = AdapterMetadata(
            base_fingerprint=found.digest if made_from is None else made_from, base_tensors=found.packed()
        )
        save_adapter(Adapter(modules, dense, metadata, "denoiser."), tmp_path / file)
        return tmp_path / file

    return write


def test_everything_fits(base: Component, make: Make) -> None:
    notes = Notes()
    path = make("a.safetensors", *NAMES, bias=True)
    scaled, applied = fitting_adapters(base, [path], [0.5], progress=notes)
    assert scaled[0].lora_scale == 0.5
    assert set(scaled[0].adapter.modules) == set(NAMES)
    assert (applied[0].modules, applied[0].dense, applied[0].unmatched) == (3, 1, ())
    assert notes.lines == [
        "Native LoRA applied (all layers): 3 success, 0 failed (100.0% success rate)",
        "Dense deltas (biases, norms) applied: 1 of 1",
    ]


def test_only_attention(base: Component, make: Make) -> None:
    notes = Notes()
    path = make("a.safetensors", *NAMES, bias=True)
    scaled, applied = fitting_adapters(base, [path], [1.0], attention_only=True, progress=notes)
    assert set(scaled[0].adapter.modules) == set(NAMES[:2])
    assert list(scaled[0].adapter.dense) == ["b.attn2.to_out.0.bias"]
    assert applied[0].modules == 2
    assert notes.lines[0].startswith("Native LoRA applied (attention layers): 2 success, 0 failed")
    with pytest.raises(AdapterError, match=r"no\.safetensors has no keys with attn1\.to or attn2\.to\."):
        fitting_adapters(base, [make("no.safetensors", "b.conv_in")], [1.0], attention_only=True)


def test_what_does_not_match_stops_unless_allowed(base: Component, make: Make) -> None:
    path = make("a.safetensors", *NAMES, "b.gone")
    with pytest.raises(AdapterError, match=r"b\.gone\.weight.*allow_unmatched"):
        fitting_adapters(base, [path], [1.0])
    notes = Notes()
    scaled, applied = fitting_adapters(base, [path], [1.0], allow_unmatched=True, progress=notes)
    assert set(scaled[0].adapter.modules) == set(NAMES)
    assert applied[0].unmatched == ("b.gone.weight",)
    assert notes.lines == ["Native LoRA applied (all layers): 3 success, 1 failed (75.0% success rate)"]
