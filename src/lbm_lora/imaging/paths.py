"""Find the images that a command reads and the path of each result.

One text names an image, a folder or a glob; every result gets its own path, none of them an input. All of it
is settled before the first image is computed.
"""

import glob
import os
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path

from lbm_lora.errors import ImageError, OutputError, held_by, home_path, not_there
from lbm_lora.imaging.digests import digests_of
from lbm_lora.imaging.image_file import READABLE, readable_extensions, writable_extensions


def expand_sources(texts: str | Sequence[str]) -> tuple[Path, ...]:
    """Return the images that one path, folder or glob names, or several of them.

    A folder stands for the images directly in it (hidden files left out), a glob (`**` goes into folders)
    for the images that it matches, both sorted by path. A path that exists is taken as it is, even if it
    contains glob characters.
    """
    several = [texts] if isinstance(texts, str) else texts
    if not several:
        raise ImageError("No image is given. Give an image, a folder of images, or a quoted glob.")
    return tuple(dict.fromkeys(path for text in several for path in _expanded(text)))


def readable_sources(texts: str | Sequence[str]) -> tuple[Path, ...]:
    """Return the images that texts name (see `expand_sources`), each read once."""
    sources = expand_sources(texts)
    digests_of(sources)
    return sources


def plan_outputs(sources: Sequence[Path], output_path: str) -> tuple[Path, ...]:
    """Return one output path for each source, in their order.

    One source: `output_path` is the file, or a folder where it is one or has no extension. Several: it is a
    folder. In a folder a result has its source's name (see `image_name`), with `.png` where that format cannot be
    written.
    """
    path = home_path(output_path)
    is_image = path.suffix.lower() in writable_extensions()
    folder = path.is_dir() or output_path.endswith(("/", os.sep)) or not path.suffix
    if len(sources) == 1 and not folder:
        if not is_image:
            raise OutputError(
                f"{path}: '{path.suffix}' is not a supported output format. Use .png, .jpg or .webp, or name a folder."
            )
        return (path,)
    if path.is_file() or (is_image and not folder):
        raise OutputError(f"{len(sources)} images need an output folder, but {path} is a file.")
    outputs = tuple(path / _output_name(source) for source in sources)
    refuse_twins((output, source) for output, source in zip(outputs, sources, strict=True))
    return outputs


def image_name(path: Path) -> str:
    """The name of an image without its extension and the `.source` of a pair: `a/lemon.source.png` -> `lemon`."""
    return path.stem.removesuffix(".source") or path.stem


def sibling(output: Path, word: str) -> Path:
    """Return the path of another image next to an output: `a/b.png`, `compare` -> `a/b_compare.png`."""
    return output.with_name(f"{output.stem}_{word}{output.suffix}")


def refuse_twins(written: Iterable[tuple[Path, Path]]) -> None:
    """Refuse two files with one path."""
    first: dict[Path, Path] = {}
    for output, source in written:
        if output in first:
            raise OutputError(f"{first[output]} and {source} would both be written to {output}. Rename one of them.")
        first[output] = source


def _expanded(text: str) -> tuple[Path, ...]:
    path = home_path(text)
    if os.path.lexists(path) and not path.is_dir():
        return (path,)  # whoever opens it says what is wrong with it
    if path.is_dir():
        found = _images_of(path.iterdir())
        if not found:
            raise ImageError(f"{path} has no image to read ({READABLE}). {held_by(path)} Give a folder with images.")
        return found
    if not glob.has_magic(text):
        raise ImageError(
            f"{not_there(path, readable_extensions())} Give an image, a folder of images, or a quoted glob."
        )
    # Path.glob takes no absolute patterns.
    found = _images_of(map(Path, glob.glob(_pattern(path), recursive=True)))  # noqa: PTH207
    if not found:
        folder = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
        reason = held_by(folder) if folder.is_dir() else not_there(folder)
        raise ImageError(f"'{text}' matches no image. {reason} Give an image, a folder of images, or a quoted glob.")
    return found


def _pattern(path: Path) -> str:
    """Return a glob in which leading folders that exist are literal: browsers create folders like `photos [1]`."""
    there, parts = Path(), list(path.parts)
    for index, part in enumerate(parts):
        there /= part
        if not there.exists():
            break
        parts[index] = glob.escape(part)
    return str(Path(*parts))


def _images_of(paths: Iterable[Path]) -> tuple[Path, ...]:
    extensions = readable_extensions()
    wanted = (p for p in paths if p.suffix.lower() in extensions and not p.name.startswith("."))
    return tuple(sorted(p for p in wanted if not p.is_dir()))  # dangling links count as damaged images


def _output_name(source: Path) -> str:
    # A GIF can be written, but only as 256 colours: nobody asked for that by putting one into a folder.
    keep = source.suffix.lower() in writable_extensions() - {".gif"}
    return f"{image_name(source)}{source.suffix if keep else '.png'}"
