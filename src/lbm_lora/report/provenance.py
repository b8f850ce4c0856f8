"""Where a report comes from: what was compared, how, and with which libraries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("lbm-lora", "torch", "safetensors", "diffusers", "numpy")
"""The libraries that results depend on."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Facts for the reader, given by the caller. No clock and no folders: equal runs give equal reports.

    Attributes:
        files: role -> file name without its folder, with what is known of it (size, fingerprint).
        settings: flag -> value.
        versions: library -> version.
    """

    files: Mapping[str, str] = field(default_factory=dict[str, str])
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    versions: Mapping[str, str] = field(default_factory=dict[str, str])


def installed_versions(libraries: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """The versions of those libraries that are installed, read without importing any."""
    found: dict[str, str] = {}
    for library in libraries:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def file_labels(base: Path, tuned: Path) -> tuple[str, str]:
    """Names of base and tuned for the reader: of the files, with their folders only where the files are namesakes."""
    if base.name != tuned.name:
        return base.name, tuned.name
    return f"{base.parent.name}/{base.name}", f"{tuned.parent.name}/{tuned.name}"
