"""Crystals to measure a network of crystals on."""

import pytest
import torch

from benchmarks.fidelity.chgnet import Crystal
from benchmarks.fidelity.crystals import KINDS, crystals


@pytest.fixture(scope="module")
def made() -> dict[str, list[Crystal]]:
    return crystals(3, held_out=2)


def elements(some: list[Crystal]) -> set[int]:
    return {int(one) for crystal in some for one in crystal.elements}


def test_every_kind_of_the_page_is_made_the_same_in_every_run(made: dict[str, list[Crystal]]) -> None:
    assert list(made) == ["calibration", *KINDS]
    assert [len(some) for some in made.values()] == [3, 2, 2, 2, 2]
    assert all(
        torch.equal(a.lengths, b.lengths)
        for a, b in zip(made["random"], crystals(3, held_out=2)["random"], strict=True)
    )


def test_calibration_sees_neither_held_out_crystals_nor_other_elements(made: dict[str, list[Crystal]]) -> None:
    seen = {tuple(one.lengths[:4].tolist()) for one in made["calibration"]}
    assert not seen & {tuple(one.lengths[:4].tolist()) for kind in KINDS for one in made[kind]}
    assert elements(made["calibration"]).isdisjoint(elements(made["elements"]))


def test_atoms_keep_their_distance(made: dict[str, list[Crystal]]) -> None:
    assert all(one.lengths.min() > 1.3 for some in made.values() for one in some)
    assert all(len(one.angles) for one in made["calibration"])
