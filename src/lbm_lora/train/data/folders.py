"""Pairs in a plain folder, in one of two layouts, in the folder itself or in folders below it.

By name: `NAME.source.png`, `NAME.target.png` and `NAME.mask.png`, side by side. By folder: `source/NAME.png`,
`target/NAME.png` and `mask/NAME.png`. The words are those of the keys (`source.jpg` -> `source`), the extension may
be any that can be read, and other files are left alone.
"""

from collections.abc import Iterator
from pathlib import Path

from lbm_lora.errors import DataError
from lbm_lora.imaging.files import readable_extensions
from lbm_lora.shards.parts import Found, Part
from lbm_lora.train.data.parts import Keys


def find_pairs(folder: Path, keys: Keys) -> list[Found]:
    """What lies under each name, complete or not, sorted by name.

    Raises:
        DataError: there is no such folder, or nothing in it has a name of either layout.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder. Give a folder of pairs, or WebDataset shards.")
    roles = [key.lower().rpartition(".")[0] for key in (keys.source, keys.target, keys.mask) if key]
    by_folder = all(roles[:2]) and all((folder / role).is_dir() for role in roles[:2])
    named = _by_folder(folder, roles) if by_folder else _by_name(folder, roles)
    parts: dict[str, dict[str, Part]] = {}
    for key, part, path in named:
        parts.setdefault(key, {})[part] = Part(path, 0, path.stat().st_size)
    if not parts:
        source, target = (f"{role}." if role else "" for role in roles[:2])
        raise DataError(
            f"{folder} holds no pairs: neither NAME.{source}png beside NAME.{target}png, nor folders "
            f"{roles[0] or 'source'}/ and {roles[1] or 'target'}/ with pictures of equal names."
        )
    return [Found(key, parts[key]) for key in sorted(parts)]


def _by_folder(folder: Path, roles: list[str]) -> Iterator[tuple[str, str, Path]]:
    for role in roles:
        for path in _pictures(folder / role):
            key = path.relative_to(folder / role).with_suffix("").as_posix()
            yield key, f"{role}{path.suffix.lower()}", path


def _by_name(folder: Path, roles: list[str]) -> Iterator[tuple[str, str, Path]]:
    for path in _pictures(folder):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        role = next((role for role in roles if role and stem.lower().endswith(f".{role}")), "")
        if role in roles:
            key = stem[: -len(role) - 1] if role else stem
            yield key, f"{role}{path.suffix.lower()}".removeprefix("."), path


def _pictures(folder: Path) -> Iterator[Path]:
    extensions = readable_extensions()
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in extensions and not hidden and path.is_file():
            yield path
