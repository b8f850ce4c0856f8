"""Keys by module and role: every ending that readers know, and one line for what is not read."""

from pathlib import Path

import pytest
import torch

from lbm_lora.adapter.formats.reading import grouped
from lbm_lora.errors import AdapterError
from lbm_lora.naming import ModuleName

ONE = torch.ones(1)


def named(stem: str) -> ModuleName | None:
    return ModuleName(stem) if stem.startswith("x") else None


@pytest.mark.parametrize(
    ("up", "down"),
    [
        (".lora_up.weight", ".lora_down.weight"),
        ("_lora.up.weight", "_lora.down.weight"),
        (".lora_B.weight", ".lora_A.weight"),
        (".lora.up.weight", ".lora.down.weight"),
        (".lora_B", ".lora_A"),
        (".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
        (".lora_B.default.weight", ".lora_A.default.weight"),
    ],
)
def test_every_ending_of_factors_that_comfyui_tries(up: str, down: str) -> None:
    found = grouped({f"x{up}": torch.ones(2), f"x{down}": torch.ones(3)}, named, Path("f"))
    assert {role: len(tensor) for role, tensor in found.factors[ModuleName("x")].items()} == {"up": 2, "down": 3}


def test_deltas_and_values_go_to_their_parameters() -> None:
    keys = [
        "x.a.diff",
        "x.a.diff_b",
        "x.n.w_norm",
        "x.n.b_norm",
        "x.table.diff_param",
        "x.b.set_weight",
        "x.t.set_param",
    ]
    found = grouped(dict.fromkeys(keys, ONE), named, Path("f"))
    assert list(found.deltas) == ["x.a.weight", "x.a.bias", "x.n.weight", "x.n.bias", "x.table"]
    assert list(found.values) == ["x.b.weight", "x.t"]


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (["x.lora_up.bias"], "f: x.lora_up.bias is not a key of a LoRA that can be read."),
        (
            ["x.a", "x.b", "x.c", "x.d"],
            "f: 4 names are not keys of a LoRA that can be read: x.a, x.b, x.c and 1 more.",
        ),
        (["y.lora_up.weight", "y.alpha"], "f: y is not a module of an LBM's denoiser."),
        (["y.alpha", "z.alpha"], "f: 2 names are not modules of an LBM's denoiser: y, z."),
        (["x.lora_up.weight", "x.lora_B.weight"], "f: x.lora_B.weight repeats what another key says."),
        (["x.diff", "x.w_norm"], "f: x.w_norm repeats what another key says."),
    ],
)
def test_what_is_not_read_is_an_error(keys: list[str], text: str) -> None:
    with pytest.raises(AdapterError) as caught:
        grouped({key: torch.ones(1) for key in keys}, named, Path("f"))
    assert str(caught.value) == text
