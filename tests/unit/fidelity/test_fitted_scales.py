"""Scales fitted to the tuned model's outputs: known answers are found."""

from dataclasses import replace
from pathlib import Path

import pytest

from lbm_lora.adapter import Adapter
from lbm_lora.fidelity.fitted_scales import fit_scales
from lbm_lora.naming import leaf_of
from smallnet import extract_files
from standins import Lbm


@pytest.fixture(scope="module")
def full(lbm: Lbm) -> Adapter:
    """The complete change of the tuned model."""
    return extract_files(lbm.base, lbm.tuned, rank=9999, conv_rank=9999).adapter


def at(adapter: Adapter, scale: float) -> Adapter:
    modules = {name: replace(one, alpha=scale * one.alpha) for name, one in adapter.modules.items()}
    return replace(adapter, modules=modules, dense={name: scale * one for name, one in adapter.dense.items()})


def test_two_parts_find_their_own_factors(lbm: Lbm, full: Adapter, images: tuple[Path, ...]) -> None:
    down = full.filtered(lambda name: name.startswith("down_blocks"))
    rest = full.filtered(lambda name: not name.startswith("down_blocks"))
    found = fit_scales(lbm.base, lbm.tuned, [at(down, 0.5), at(rest, 1.25)], images[:1])
    assert found.factors == pytest.approx((2.0, 0.8), abs=0.02)


@pytest.mark.slow
def test_loras_that_cannot_be_told_apart_share_the_step(lbm: Lbm, full: Adapter, images: tuple[Path, ...]) -> None:
    found = fit_scales(lbm.base, lbm.tuned, [full, full], images[:1])
    assert found.factors == pytest.approx((0.5, 0.5), abs=2e-3)


@pytest.mark.slow
def test_what_is_best_is_kept(lbm: Lbm, full: Adapter, images: tuple[Path, ...]) -> None:
    norms = full.filtered(lambda name: leaf_of(name) == "weight" and "norm" in name)
    found = fit_scales(lbm.base, lbm.tuned, [full, at(norms, 0.0)], images[:1])
    assert found.factors == pytest.approx((1.0, 1.0), abs=1e-3)
    assert found.after.typical <= found.before.typical
