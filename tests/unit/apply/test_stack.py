"""LoRAs of a command line: factors, the part that is kept, the checks, and the documented line."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lbm_lora.adapter import Adapter, AdapterMetadata, LoraModule, save_adapter
from lbm_lora.apply import fitting_adapters, stack
from lbm_lora.checkpoint import Component, Fingerprint, fingerprint, open_checkpoint
from lbm_lora.errors import AdapterError, PatternError
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.progress import LbmLoraWarning

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


def test_the_base_is_read_last_and_once(base: Component, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Component] = []

    def counted(component: Component) -> Fingerprint:
        read.append(component)
        return fingerprint(component)

    monkeypatch.setattr(stack, "fingerprint", counted)
    with pytest.raises(PatternError):
        fitting_adapters(base, [make("a.safetensors", *NAMES), make("b.safetensors", *NAMES)], [1.0, "1,nothing=0"])
    assert read == []
    fitting_adapters(base, [make("a.safetensors", *NAMES), make("b.safetensors", *NAMES)], [1.0])
    assert len(read) == 1


def test_a_lora_of_sdxl_is_applied_without_what_sees_the_text(tmp_path: Path) -> None:
    shapes = {"b.attn2.to_k": (4, 6), "b.attn2.to_q": (4, 4), "b.attn1.to_k": (4, 4)}
    weights = {f"denoiser.{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    save_file(weights, tmp_path / "base.safetensors")
    base = open_checkpoint(tmp_path / "base.safetensors").component()
    modules = {
        ModuleName(name): LoraModule(
            ModuleName(name), torch.ones(2, 16 if "attn2.to_k" in name else 4), torch.ones(4, 2), 2.0
        )
        for name in shapes
    }
    save_adapter(Adapter(modules, {}, prefix="denoiser."), tmp_path / "sdxl.safetensors")
    unknown = "does not say which base it was made from"
    with pytest.warns(LbmLoraWarning, match=unknown), pytest.warns(LbmLoraWarning, match="was made for SDXL"):
        (scaled,), (applied,) = fitting_adapters(base, [tmp_path / "sdxl.safetensors"], [1.0])
    assert set(scaled.adapter.modules) == {"b.attn2.to_q", "b.attn1.to_k"}
    assert (applied.modules, applied.left_out, applied.unmatched) == (2, ("b.attn2.to_k.weight",), ())
    with pytest.warns(LbmLoraWarning, match=unknown), pytest.warns(LbmLoraWarning, match="Cropped"):
        (scaled,), (applied,) = fitting_adapters(base, [tmp_path / "sdxl.safetensors"], [1.0], crop=True)
    assert scaled.adapter.modules[ModuleName("b.attn2.to_k")].down.shape == (2, 6)
    assert (applied.modules, applied.left_out) == (3, ())
