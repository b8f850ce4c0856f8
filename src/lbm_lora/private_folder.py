"""The names of temporary files, for rooms that are not converted yet."""

from pathlib import Path


def stem_of(name: str) -> str:
    return f".{name}"


def output_of(path: Path) -> Path:
    return path


def remove_leftover(path: Path) -> bool:
    return False
