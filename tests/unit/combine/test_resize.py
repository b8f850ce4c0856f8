"""LoRAs at other ranks: sizes are kept, errors reached, and the file says what it is now."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, AdapterMetadata, LoraModule, Status, load_adapter
from lbm_lora.combine import Resized, resize_adapter
from lbm_lora.errors import AdapterError, InputError
from lbm_lora.factorize import FixedRank
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.ranks import FixedRanks, RankRule
from lbm_lora.ranks.rules import SizeLimits

Rand = Callable[..., Tensor]
BF16 = torch.bfloat16
RANK = 24


@pytest.fixture
def adapter(rand: Rand) -> Adapter:
    """Twelve layers whose singular values fall at different rates, with biases."""
    modules: dict[ModuleName, LoraModule] = {}
    dense: dict[ParamName, Tensor] = {}
    for index in range(12):
        name = ModuleName(f"blocks.{index}.proj")
        fall = (1 - 0.06 * (index + 1)) ** torch.arange(RANK)
        kernel = (3, 3) if index % 3 == 0 else ()
        up, down = torch.linalg.qr(rand(90, RANK)).Q * fall, rand(RANK, 60, *kernel)
        modules[name] = LoraModule(name, down.to(BF16), up.reshape(90, RANK, *(1 for _ in kernel)).to(BF16), RANK)
        dense[ParamName(f"{name}.bias")] = (0.1 * rand(90)).to(BF16)
    facts = {
        "lbm_lora_settings": json.dumps({"base": "b.safetensors", "method": "calibrated", "max_size": "1MB"}),
        "lbm_lora_errors": json.dumps({"relative_error": 0.25}),
        "lbm_lora_counts": json.dumps({"lora": 12, "dense": 12, "unchanged": 3, "excluded": 5}),
        "lbm_lora_refinement": json.dumps({"steps": 10, "images": "ab cd", "error_before": 1, "worst_error_after": 1}),
        "ss_network_dim": "24",
        "note": "kept",
    }
    return Adapter(modules, dense, AdapterMetadata("1", "base", "tensors", "tuned", facts), "denoiser.")


def resized(
    adapter: Adapter, rule: RankRule, *paths: Path | None, dtype: torch.dtype = BF16, **left_out: str
) -> list[Resized]:
    reasons = {name: reason for name in adapter.params for leaf, reason in left_out.items() if name.endswith(leaf)}
    return resize_adapter(adapter, rule, paths or (None,), dtype=dtype, left_out=reasons, settings={"dtype": "bf16"})


def error_of(found: Adapter, adapter: Adapter) -> float:
    lost = size = 0.0
    for name in adapter.params:
        delta, kept = adapter.delta(name), found.delta(name)
        assert delta is not None
        lost += float((delta if kept is None else delta - kept).double().square().sum())
        size += float(delta.double().square().sum())
    return (lost / size) ** 0.5


def fixed(linear: int, conv: int | None = None) -> FixedRanks:
    return FixedRanks(ranks=(FixedRank.of(linear, conv),))


def sizes(*nbytes: int) -> SizeLimits:
    return SizeLimits(nbytes=nbytes, words=tuple(f"{one}B" for one in nbytes))


@pytest.mark.parametrize("dtype", [BF16, torch.int8])
def test_several_sizes_are_kept_and_used(adapter: Adapter, tmp_path: Path, dtype: torch.dtype) -> None:
    wanted = [70_000, 50_000, 40_000]
    paths = [tmp_path / f"{nbytes}.safetensors" for nbytes in wanted]
    found = resized(adapter, sizes(*wanted), *paths, dtype=dtype)
    errors: list[float] = []
    for nbytes, path, one in zip(wanted, paths, found, strict=True):
        written = load_adapter(path)
        assert written.dtype == (torch.int8 if dtype == torch.int8 else None)
        assert 0.95 * nbytes <= path.stat().st_size <= nbytes
        assert one.ledger.total().relative_error == pytest.approx(error_of(written, adapter), rel=1e-2)
        assert one.predicted.error == pytest.approx(error_of(written, adapter), rel=0.05)
        errors.append(error_of(written, adapter))
    assert errors == sorted(errors)


def test_an_int8_file_in_and_out(adapter: Adapter, tmp_path: Path) -> None:
    """Eight bits are kept to the bit, and halve what is written."""
    first, again, small = (tmp_path / f"{name}.safetensors" for name in ("first", "again", "small"))
    resized(adapter, fixed(RANK, RANK), first, dtype=torch.int8)
    given = load_adapter(first)
    resized(given, fixed(RANK, RANK), again, dtype=torch.int8)
    for name, module in load_adapter(again).modules.items():
        assert torch.equal(module.delta(), given.modules[name].delta())
    (found,) = resized(given, fixed(8), small, dtype=torch.int8)
    assert load_adapter(small).dtype == torch.int8
    assert found.ledger.total().relative_error == pytest.approx(error_of(load_adapter(small), given), rel=1e-2)


def test_the_file_keeps_its_origin_and_says_what_changed(adapter: Adapter) -> None:
    (found,) = resized(adapter, fixed(6), bias="in --exclude")
    assert found.adapter is not None
    made = found.adapter.metadata
    assert (made.format, made.base_fingerprint, made.base_tensors, made.tuned_fingerprint) == (
        "1", "base", "tensors", "tuned",
    )  # fmt: skip
    assert made.facts["note"] == "kept"
    assert made.facts["ss_network_dim"] == "6"
    settings, counts, errors, refinement = (
        json.loads(made.facts[f"lbm_lora_{key}"]) for key in ("settings", "counts", "errors", "refinement")
    )
    assert settings == {
        "base": "b.safetensors", "method": "calibrated", "dtype": "bf16", "rank_policy": "fixed", "rank": 6,
        "conv_rank": 3,
    }  # fmt: skip
    assert counts == {"lora": 12, "dense": 0, "unchanged": 3, "excluded": 17}
    assert errors.keys() == {"resize_error", "predicted_weights_error"}
    assert errors["resize_error"] == pytest.approx(error_of(found.adapter, adapter), rel=1e-3)
    assert refinement == {"steps": 10, "images": "ab cd"}
    assert made.is_made_for_output
    assert {row.status for row in found.ledger} == {Status.LORA, Status.EXCLUDED}


def test_what_cannot_be_made_is_said_and_nothing_is_written(adapter: Adapter, tmp_path: Path) -> None:
    path = tmp_path / "l.safetensors"
    with pytest.raises(InputError, match=r"^max_size 10\.0 kB: biases, norms and the header alone take \d+\.\d kB\."):
        resized(adapter, sizes(10_000), path)
    zero = Adapter({}, {ParamName("a.bias"): torch.zeros(4)})
    with pytest.raises(AdapterError, match=r"^nothing is left of the LoRA\. Allow higher ranks"):
        resized(zero, fixed(4), path)
    assert list(tmp_path.iterdir()) == []
