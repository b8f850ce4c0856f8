"""Crystals to measure a network of crystals on: salts in simple lattices with displaced atoms, and others."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from benchmarks.fidelity.chgnet import Crystal, crystal

KINDS: Mapping[str, str] = {
    "salts": "other salts of the same elements",
    "elements": "salts of other elements",
    "metals": "alloys of two metals",
    "random": "atoms at random places",
}
"""Map from kinds of held-out crystals to the page's words for them; calibration saw only crystals like the first."""

# radii of ions in angstroms, by atomic number (Shannon, 1976)
_CATIONS = {3: 0.76, 11: 1.02, 12: 0.72, 20: 1.0, 25: 0.83, 26: 0.78, 28: 0.69, 30: 0.74}
_ANIONS = {8: 1.4, 9: 1.33, 16: 1.84}
_OTHER_CATIONS = {19: 1.38, 38: 1.18, 22: 0.86, 27: 0.75, 48: 0.95}
_OTHER_ANIONS = {17: 1.81, 34: 1.98}
_METALS = {13: 1.43, 22: 1.45, 26: 1.26, 28: 1.24, 29: 1.28, 40: 1.6}  # radii in the metal
_DISPLACED = 0.08  # standard deviation of a position, in angstroms

# places of cations and anions in a cubic cell, and its side over the sum of the radii
_FACES = ((0, 0, 0), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5))
_EIGHTHS = ((0.25, 0.25, 0.25), (0.75, 0.75, 0.25), (0.75, 0.25, 0.75), (0.25, 0.75, 0.75))
_OTHER_EIGHTHS = tuple(tuple(1 - place for place in one) for one in _EIGHTHS)
_MIDDLES = ((0.5, 0, 0), (0, 0.5, 0), (0, 0, 0.5), (0.5, 0.5, 0.5))
_LATTICES = (
    (_FACES, _MIDDLES, 2.0),  # rock salt
    (_FACES, _EIGHTHS, 4 / 3**0.5),  # zinc blende
    (_FACES, (*_EIGHTHS, *_OTHER_EIGHTHS), 4 / 3**0.5),  # fluorite
    (((0, 0, 0),), ((0.5, 0.5, 0.5),), 2 / 3**0.5),  # caesium chloride
)


def crystals(count: int, *, held_out: int = 12) -> dict[str, list[Crystal]]:
    """Return crystals: so many for `calibration`, and held-out ones of each kind."""
    draws = [np.random.default_rng([0, kind]) for kind in range(5)]
    return {
        "calibration": [_salt(draws[0], _CATIONS, _ANIONS) for _ in range(count)],
        "salts": [_salt(draws[1], _CATIONS, _ANIONS) for _ in range(held_out)],
        "elements": [_salt(draws[2], _OTHER_CATIONS, _OTHER_ANIONS) for _ in range(held_out)],
        "metals": [_alloy(draws[3]) for _ in range(held_out)],
        "random": [_random(draws[4]) for _ in range(held_out)],
    }


def _salt(draw: np.random.Generator, cations: Mapping[int, float], anions: Mapping[int, float]) -> Crystal:
    """Return one or two kinds of cations and one of anions in a lattice."""
    centers, others, factor = _LATTICES[draw.integers(len(_LATTICES))]
    two = draw.choice([*cations], 2)
    metals = [int(one) for one in draw.choice(two, len(centers))]
    anion = int(draw.choice([*anions]))
    radius = fmean(cations[one] for one in metals)
    side = factor * (radius + anions[anion]) * draw.uniform(0.97, 1.05)
    return _displaced(draw, side, [*metals, *[anion] * len(others)], [*centers, *others])


def _alloy(draw: np.random.Generator) -> Crystal:
    """Return two metals in a face-centered lattice."""
    metals = [int(one) for one in draw.choice(draw.choice([*_METALS], 2), len(_FACES))]
    side = 2 * 2**0.5 * fmean(_METALS[one] for one in metals) * draw.uniform(0.97, 1.05)
    return _displaced(draw, side, metals, _FACES)


def _random(draw: np.random.Generator) -> Crystal:
    """Return six ions of any kind in a cell, no two of them closer than 1.6 angstroms."""
    elements = [int(one) for one in draw.choice([*_CATIONS, *_ANIONS], 6)]
    cell, places = np.diag(draw.uniform(4.5, 5.5, 3)), list[np.ndarray]()
    while len(places) < len(elements):
        place = draw.uniform(0, 1, 3)
        apart = [(one - place + 0.5) % 1 - 0.5 for one in places]
        if all(np.linalg.norm(one @ cell) > 1.6 for one in apart):
            places.append(place)
    return crystal(cell, elements, np.array(places) @ cell)


def _displaced(
    draw: np.random.Generator, side: float, elements: Sequence[int], places: Sequence[Sequence[float]]
) -> Crystal:
    positions = np.array(places) * side
    return crystal(np.eye(3) * side, elements, positions + draw.normal(size=positions.shape) * _DISPLACED)
