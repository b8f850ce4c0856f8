"""CHGNet: what its graph and its answers must have, whatever its weights."""

import numpy as np
import pytest
import torch

from benchmarks.fidelity.chgnet import Chgnet, crystal

SIDE = 4.2
CELL = np.eye(3) * SIDE
SALT = np.array([(0, 0, 0), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)])
PLACES = np.concatenate([SALT, np.add(SALT, (0.5, 0, 0)) % 1]) * SIDE
ELEMENTS = [12] * 4 + [8] * 4


@pytest.fixture(scope="module")
def network() -> Chgnet:
    torch.manual_seed(0)
    return Chgnet().eval()


def test_rock_salt_has_its_neighbors() -> None:
    found = crystal(CELL, ELEMENTS, PLACES)
    lengths = found.lengths[found.undirected]
    nearest = (lengths < SIDE / 2 + 0.01).sum()
    assert nearest == 8 * 6
    assert (lengths < SIDE / 2**0.5 + 0.01).sum() == 8 * (6 + 12)
    assert len(found.undirected) == 2 * len(found.lengths)
    assert found.lengths.max() < 6
    assert len(found.angles) == 8 * 18 * 17  # bonds to the nearest and the next neighbors, 2.97 angstroms, in pairs
    right = (found.radians - torch.pi / 2).abs() < 1e-3
    assert right.sum() == 8 * (6 * 4 + 2 * 6 * 4 + 12 * 2)


@torch.no_grad()
def test_neither_the_frame_nor_the_order_of_atoms_counts(network: Chgnet) -> None:
    draw = np.random.default_rng(0)
    places = PLACES + draw.normal(size=PLACES.shape) * 0.1
    wanted = network(crystal(CELL, ELEMENTS, places))
    rotation = np.linalg.qr(draw.normal(size=(3, 3)))[0]
    shifted = np.add(places, (1.3, -0.4, 9.0)) @ rotation
    assert torch.allclose(network(crystal(CELL @ rotation, ELEMENTS, shifted)), wanted, atol=1e-4)
    order = draw.permutation(8)
    reordered = network(crystal(CELL, [ELEMENTS[one] for one in order], places[order]))
    assert torch.allclose(reordered, wanted[order], atol=1e-4)


@torch.no_grad()
def test_bonds_fade_out_before_they_end(network: Chgnet) -> None:
    """Two atoms that move out of each other's reach change nothing at once."""
    cell = np.eye(3) * 30

    def energy(length: float) -> torch.Tensor:
        places = np.array([(0, 0, 0), (length, 0, 0), (0, 2, 0)], float)
        return network(crystal(cell, [12, 8, 8], places))

    assert torch.allclose(energy(5.999), energy(6.001), atol=1e-5)
    assert torch.allclose(energy(2.999), energy(3.001), atol=1e-2)
    assert not torch.allclose(energy(2.5), energy(3.5), atol=1e-2)
