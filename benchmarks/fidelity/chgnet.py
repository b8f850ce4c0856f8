"""CHGNet, a network of crystals: the energy and the magnetic moment of every atom.

After Deng et al., "CHGNet as a pretrained universal neural network potential for charge-informed atomistic modelling",
Nature Machine Intelligence 5, 2023: atoms, bonds up to 6 A and angles between bonds up to 3 A exchange messages in
gated layers. Only what the published weights 0.3.0 and r2scan need, without their reference energies of elements.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

_WIDTH = 64
_RADIAL, _ANGULAR = 31, 15  # frequencies of bonds and angles
_FAR, _NEAR = 6.0, 3.0  # longest bonds of atoms' and of bonds' messages, in angstroms
_SMOOTH = 8  # power at which a bond fades out at its longest


@dataclass(frozen=True, kw_only=True, eq=False)
class Crystal:
    """Atoms of a cell, and their bonds.

    Attributes:
        elements: atomic numbers.
        bonds: pair of atoms of each directed bond.
        undirected: index of each directed bond without its direction.
        lengths: of undirected bonds, in angstroms.
        angles: atom and two undirected bonds of each angle.
        radians: of angles.
    """

    elements: Int[Tensor, " atoms"]
    bonds: Int[Tensor, "directed 2"]
    undirected: Int[Tensor, " directed"]
    lengths: Float[Tensor, " undirected"]
    angles: Int[Tensor, "angles 3"]
    radians: Float[Tensor, " angles"]


def crystal(cell: np.ndarray, elements: Sequence[int], positions: np.ndarray) -> Crystal:
    """Find the bonds and angles of a periodic crystal.

    Args:
        cell: (3, 3), its edges as rows, in angstroms.
        positions: (atoms, 3), in angstroms.
    """
    heights = np.abs(np.linalg.det(cell)) / np.linalg.norm(np.cross(cell[[1, 2, 0]], cell[[2, 0, 1]]), axis=1)
    counts = np.ceil(_FAR / heights).astype(int) + 1
    images = np.array([*product(*(range(-count, count + 1) for count in counts))])
    offsets = positions[None, :, None] + (images @ cell)[None, None] - positions[:, None, None]
    lengths = np.linalg.norm(offsets, axis=3)
    found = np.argwhere((lengths > 1e-6) & (lengths < _FAR))
    vectors, lengths = offsets[tuple(found.T)], lengths[tuple(found.T)]
    there = np.concatenate([found[:, :2], images[found[:, 2]]], axis=1)
    back = np.concatenate([found[:, 1::-1], -images[found[:, 2]]], axis=1)
    is_back = [tuple(one) > tuple(other) for one, other in zip(there.tolist(), back.tolist(), strict=True)]
    alike = np.where(np.array(is_back)[:, None], back, there)
    _, first, undirected = np.unique(alike, axis=0, return_index=True, return_inverse=True)
    undirected = undirected.reshape(-1)  # numpy 2.0 gave it the shape of a column
    near = np.flatnonzero(lengths < _NEAR)
    meet = (found[near, None, 0] == found[None, near, 0]) & ~np.eye(len(near), dtype=bool)
    left, right = near[np.argwhere(meet)].T
    units = vectors / lengths[:, None]
    return Crystal(
        elements=torch.tensor(elements),
        bonds=torch.from_numpy(found[:, :2].copy()),
        undirected=torch.from_numpy(undirected),
        lengths=torch.from_numpy(lengths[first]).float(),
        angles=torch.from_numpy(np.stack([found[left, 0], undirected[left], undirected[right]], axis=1)),
        radians=torch.from_numpy(np.arccos((units[left] * units[right]).sum(1) * (1 - 1e-6))).float(),
    )


class Chgnet(nn.Module):
    """The network. Its parameters have the published names."""

    def __init__(self) -> None:
        super().__init__()
        self.atom_embedding = nn.ModuleDict({"embedding": nn.Embedding(94, _WIDTH)})
        self.bond_basis_expansion = nn.ModuleDict(
            {"rbf_expansion_ag": _Radial(_FAR), "rbf_expansion_bg": _Radial(_NEAR)}
        )
        self.bond_embedding = nn.Linear(_RADIAL, _WIDTH, bias=False)
        self.bond_weights_ag = nn.Linear(_RADIAL, _WIDTH, bias=False)
        self.bond_weights_bg = nn.Linear(_RADIAL, _WIDTH, bias=False)
        self.angle_basis_expansion = nn.ModuleDict({"fourier_expansion": _Fourier()})
        self.angle_embedding = nn.Linear(2 * _ANGULAR + 1, _WIDTH, bias=False)
        self.atom_conv_layers = nn.ModuleList(_Messages("twoBody_atom", 3) for _ in range(4))
        self.bond_conv_layers = nn.ModuleList(_Messages("twoBody_bond", 4) for _ in range(3))
        self.angle_layers = nn.ModuleList(_Update() for _ in range(2))
        self.site_wise = nn.Linear(_WIDTH, 1)
        self.readout_norm = nn.LayerNorm(_WIDTH)
        self.mlp = _Layers(*(part for _ in range(3) for part in (_square(), nn.SiLU())), nn.Identity(), _row())

    def forward(self, crystal: Crystal) -> Float[Tensor, "atoms 2"]:
        """Return the energy, in eV, and the magnetic moment, in Bohr magnetons, of each atom."""
        atoms = self.atom_embedding["embedding"](crystal.elements - 1)
        far = self.bond_basis_expansion["rbf_expansion_ag"](crystal.lengths)
        near = self.bond_basis_expansion["rbf_expansion_bg"](crystal.lengths)
        bonds, fade, fade_near = self.bond_embedding(far), self.bond_weights_ag(far), self.bond_weights_bg(near)
        angles = self.angle_embedding(self.angle_basis_expansion["fourier_expansion"](crystal.radians))
        start, end = crystal.bonds.T
        corner, left, right = crystal.angles.T
        bond = crystal.undirected
        magnetic = atoms
        for index, layer in enumerate(self.atom_conv_layers):
            magnetic, inputs = atoms, [atoms[start], bonds[bond], atoms[end]]
            atoms = layer(atoms, inputs, fade[bond], start)
            if index < len(self.bond_conv_layers):
                inputs = [bonds[left], bonds[right], angles, atoms[corner]]
                bonds = self.bond_conv_layers[index](bonds, inputs, fade_near[left] * fade_near[right], left)
            if index < len(self.angle_layers):
                angles = self.angle_layers[index](angles, [bonds[left], bonds[right], angles, atoms[corner]])
        energy = self.mlp(self.readout_norm(atoms))
        return torch.cat([energy, self.site_wise(magnetic).abs()], dim=1)


class _Layers(nn.Module):
    """Layers in a row, under the published names."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, values: Tensor) -> Tensor:
        return self.layers(values)


class _Gated(nn.Module):
    """Two networks of the same inputs, one of which gates the other."""

    def __init__(self, parts: int, *, hidden: bool) -> None:
        super().__init__()
        self.mlp_core, self.mlp_gate = (_gated_part(parts, hidden=hidden) for _ in range(2))
        self.bn1, self.bn2 = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        values = torch.cat([*inputs], dim=1)
        core = functional.silu(self.bn1(self.mlp_core(values)))
        return core * torch.sigmoid(self.bn2(self.mlp_gate(values)))


class _Messages(nn.Module):
    """Add the messages of neighbors to what they meet at."""

    def __init__(self, name: str, parts: int) -> None:
        super().__init__()
        self._name = name
        self.add_module(name, _Gated(parts, hidden=True))
        self.mlp_out = _Layers(nn.Identity(), nn.Linear(_WIDTH, _WIDTH, bias=False))

    def forward(self, values: Tensor, inputs: Sequence[Tensor], fade: Tensor, owners: Tensor) -> Tensor:
        messages = self.get_submodule(self._name)(inputs) * fade
        return self.mlp_out(torch.zeros_like(values).index_add(0, owners, messages)) + values


class _Update(nn.Module):
    """Update angles by their corners and bonds."""

    def __init__(self) -> None:
        super().__init__()
        self.twoBody_bond = _Gated(4, hidden=False)

    def forward(self, values: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        return self.twoBody_bond(inputs) + values


class _Radial(nn.Module):
    """Sines of a length, which fade out smoothly at the longest."""

    def __init__(self, longest: float) -> None:
        super().__init__()
        self._longest = longest
        self.frequencies = nn.Parameter(torch.pi * torch.arange(1, _RADIAL + 1))

    def forward(self, lengths: Tensor) -> Tensor:
        share, p = (lengths / self._longest)[:, None], _SMOOTH
        bump = 1 - share**p * ((p + 1) * (p + 2) / 2 - p * (p + 2) * share + p * (p + 1) / 2 * share**2)
        waves = (2 / self._longest) ** 0.5 * torch.sin(self.frequencies * share) / lengths[:, None]
        return torch.where(share < 1, bump, 0) * waves


class _Fourier(nn.Module):
    """Sines and cosines of an angle."""

    def __init__(self) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.arange(1, _ANGULAR + 1).float())

    def forward(self, radians: Tensor) -> Tensor:
        phases = torch.outer(radians, self.frequencies)
        constant = torch.full_like(radians, 0.5**0.5)[:, None]
        return torch.cat([constant, phases.sin(), phases.cos()], dim=1) / torch.pi**0.5


def _gated_part(parts: int, *, hidden: bool) -> _Layers:
    first = nn.Linear(parts * _WIDTH, _WIDTH)
    return _Layers(first, nn.SiLU(), nn.Identity(), _square()) if hidden else _Layers(nn.Identity(), first)


def _square() -> nn.Linear:
    return nn.Linear(_WIDTH, _WIDTH)


def _row() -> nn.Linear:
    return nn.Linear(_WIDTH, 1)
