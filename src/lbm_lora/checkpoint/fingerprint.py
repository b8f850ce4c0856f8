"""Content hash of a component: identifies the weights that an adapter was made from.

It covers only names, shapes, dtypes and bytes, in the order of the names: two files with the same tensors have the
same fingerprint, whatever their container, key order or prefix. The digest is XXH3 (128 bits): it catches accidental
mismatches but not deliberate forgery. A short digest of every tensor is kept with it, so that a mismatch can name the
tensors that differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import xxhash

from lbm_lora.checkpoint.reader import Component
from lbm_lora.checkpoint.spec import TensorSpec, bytes_of
from lbm_lora.naming import ParamName
from lbm_lora.parallel import ordered_map

_SHORT = 8  # hexadecimal digits kept from each tensor's digest


@dataclass(frozen=True)
class Fingerprint:
    """Digest of a component and short digests of its tensors.

    Attributes:
        digest: 32 hexadecimal digits over the complete component.
        tensors: param name -> the first 8 digits of that tensor's digest.
    """

    digest: str
    tensors: Mapping[ParamName, str]

    def packed(self) -> str:
        """Return the short digests in the order of the names, joined, as stored in an adapter's metadata."""
        return "".join(self.tensors[name] for name in sorted(self.tensors))


class FingerprintBuilder:
    """Collects the digests of a component's tensors, in any order."""

    def __init__(self) -> None:
        self._digests: dict[ParamName, str] = {}

    def add(self, name: ParamName, tensor: torch.Tensor) -> None:
        digest = xxhash.xxh3_128(f"{name} {TensorSpec.of(tensor)}\n".encode())
        digest.update(bytes_of(tensor))
        self._digests[name] = digest.hexdigest()

    def build(self) -> Fingerprint:
        whole = xxhash.xxh3_128()
        for name in sorted(self._digests):
            whole.update(self._digests[name].encode())
        return Fingerprint(whole.hexdigest(), {name: digest[:_SHORT] for name, digest in self._digests.items()})


def fingerprint(component: Component) -> Fingerprint:
    """Read the complete component once and hash it."""
    builder = FingerprintBuilder()
    for _ in ordered_map(lambda name: builder.add(name, component.read(name)), component):
        pass
    return builder.build()


def differing(packed: str, found: Fingerprint) -> list[ParamName]:
    """Return the tensors of `found` whose short digests differ from `packed`; all of them if the counts differ."""
    names = sorted(found.tensors)
    shorts = [packed[start : start + _SHORT] for start in range(0, len(packed), _SHORT)]
    if len(shorts) != len(names):
        return names
    return [name for name, short in zip(names, shorts, strict=True) if found.tensors[name] != short]
