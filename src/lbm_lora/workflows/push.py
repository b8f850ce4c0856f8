"""Publish a LoRA on the Hugging Face hub: the verb `push`."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from lbm_lora.adapter import Adapter, Saved, load_adapter, save_adapter
from lbm_lora.adapter.adapter_file import is_unchanged
from lbm_lora.adapter.formats import WISHES
from lbm_lora.adapter.formats.names import counted
from lbm_lora.configs.push import PushConfig
from lbm_lora.errors import ConfigError, InputError, Option, OutputError, plural
from lbm_lora.files import Outputs, atomic_path, file_digest, is_same, together, write_text, written_bytes
from lbm_lora.hub import HubName, localized
from lbm_lora.hub.card import CardFacts, card_text, check_card, content_rows, error_rows, measured_errors, report_rows
from lbm_lora.hub.publish import CARD, Commit, check_replaced, destination, publish
from lbm_lora.imaging.digests import digests_of
from lbm_lora.imaging.paths import expand_sources
from lbm_lora.missing_path import with_name
from lbm_lora.model.constants import LBM_UNET, SDXL_SIGNATURE
from lbm_lora.model.names import empty_unet, shapes_of
from lbm_lora.naming import ParamName
from lbm_lora.progress import SILENT, Progress, warn

TWIN = "pytorch_lora_weights.safetensors"
"""File of a repository that diffusers looks for."""

_MOST_IMAGES = 12


@dataclass(frozen=True, kw_only=True)
class PushedFile:
    """File of the repository."""

    path: str
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class PushResult:
    """Published repository, or the folder that was written instead."""

    repo: str
    url: str
    """Page of the repository; empty if nothing was uploaded."""
    commit: str
    """Hash of the commit; empty if nothing was uploaded."""
    folder: Path | None
    files: tuple[PushedFile, ...]
    dropped: tuple[ParamName, ...] = field(repr=False)
    """Parameters that the file for diffusers leaves out."""


def run(config: PushConfig, progress: Progress = SILENT) -> PushResult:
    """Publish a LoRA, its twin for diffusers and a model card, in one commit.

    Raises:
        InputError: invalid input of any kind; see `lbm_lora.errors`. Nothing is uploaded then.
        HubError: the hub refuses the token or the commit, or cannot be reached.
    """
    destination(config.to)
    config = localized(config, progress)
    contents = planned(config, config.images)
    return pushed(config, load_adapter(config.lora_path), contents, config.images, progress)


run_push = run
"""Its name on the public page."""


@dataclass(frozen=True)
class Contents:
    """Contents of the repository, except for its card and the file for diffusers.

    Attributes:
        lora: name of the native file.
        pictures: path in the repository -> picture.
    """

    lora: str
    pictures: Mapping[str, Path]


def planned(config: PushConfig, images: str | Sequence[str] | None) -> Contents:
    """Return the contents of the repository, and check the folder of `save_to`, if one is given.

    Raises:
        OutputError: a file there would be replaced.
        ConfigError: there are too many pictures, or two of one name.
    """
    contents = Contents(lora=_native_name(config), pictures=_names(images))
    if config.save_to is None:
        return contents
    outputs = Outputs(overwrite=config.overwrite).reads(config.lora_path, *contents.pictures.values())
    card = config.save_to / CARD
    if card.is_file() and not is_unedited_card(card) and not config.overwrite:
        raise OutputError(f"{card} was edited. Move it, or use ", Option("overwrite"), " to replace it.")
    outputs.writes(card).writes(config.save_to / TWIN)
    for name, source in {contents.lora: config.lora_path, **contents.pictures}.items():
        if not _is_copy(config.save_to / name, source):
            outputs.writes(config.save_to / name)
    outputs.check()
    return contents


def _is_copy(path: Path, source: Path) -> bool:
    """Return whether a file is another one with the bytes of its source, as an earlier `push` copied it."""
    are_files = path.is_file() and source.is_file() and not is_same(path, source)
    return are_files and file_digest(path) == file_digest(source)


def pushed(
    config: PushConfig,
    adapter: Adapter,
    contents: Contents,
    images: str | Sequence[str] | None,
    progress: Progress = SILENT,
) -> PushResult:
    """Publish an adapter.

    Args:
        config: its `lora_path` names the LoRA; nothing is read from it.
        contents: from `planned`.
        images: the pictures as the user gave them, to find a report next to them.
    """
    name = destination(config.to)
    base_model = config.base_model or _default_base(adapter)
    pictures = contents.pictures
    digests_of(list(pictures.values()))  # each can be read
    file = adapter.path if is_unchanged(adapter) else None
    with TemporaryDirectory(prefix="lbm-lora-") as temporary:
        folder = Path(temporary)
        lora = _native(adapter, file, folder / contents.lora)
        twin = _twin(adapter, folder)
        errors = measured_errors(adapter)
        text = card_text(
            CardFacts(
                repo=name.repo,
                base_model=base_model,
                is_backbone=base_model == SDXL_SIGNATURE,
                license=config.license,
                lora=lora.name,
                twin=None if twin is None else TWIN,
                contents=content_rows(adapter, written_bytes(lora)),
                measured=[*error_rows(errors), *report_rows(_folder_of(images), lora=file)],
                lost="" if twin is None else _lost(adapter, twin.dropped),
                remarks=() if twin is None else twin.notes,
                images=[*pictures],
                relative_error=errors.get("relative_error"),
            )
        )
        check_card(text)
        write_text(folder / CARD, text)
        files = {CARD: folder / CARD, lora.name: lora, **({} if twin is None else {TWIN: twin.path}), **pictures}
        looked_at = None if config.save_to else check_replaced(name, files, overwrite=config.overwrite)
        commit = _delivered(config, name, files, f"Upload {lora.name}", looked_at, progress)
        return PushResult(
            repo=name.repo,
            url="" if commit is None else commit.url,
            commit="" if commit is None else commit.id,
            folder=config.save_to,
            files=tuple(PushedFile(path=path, nbytes=written_bytes(file)) for path, file in files.items()),
            dropped=() if twin is None else twin.dropped,
        )


def _delivered(
    config: PushConfig, name: HubName, files: Mapping[str, Path], message: str, on: str | None, progress: Progress
) -> Commit | None:
    """Publish the files on top of a commit, or write them to the folder of `save_to`."""
    if config.save_to is None:
        message = config.message or message
        return publish(name, files, private=config.private, message=message, on=on, progress=progress)
    with together():
        for path, file in files.items():
            _copy(file, config.save_to / path)
    if TWIN not in files and (config.save_to / TWIN).exists():
        warn(f"{config.save_to / TWIN} is of an earlier LoRA: this one has none for diffusers. Remove it.")
    return None


def _copy(file: Path, path: Path) -> None:
    with atomic_path(path) as temporary:
        shutil.copyfile(file, temporary)


def _default_base(adapter: Adapter) -> str:
    """Return the backbone of LBM, if the adapter is for networks of its widths.

    Raises:
        ConfigError: it is not.
    """
    shapes = shapes_of(empty_unet(LBM_UNET))
    if all(shapes.get(name) == adapter.shape_of(name) for name in adapter.params):
        return SDXL_SIGNATURE
    raise ConfigError(
        f"{adapter.label} is not for networks of SDXL's widths. Name the model on the hub that it is for: ",
        Option("base_model"),
        " user/repo.",
    )


def _names(images: str | Sequence[str] | None) -> dict[str, Path]:
    """Return path in the repository -> picture.

    Raises:
        ConfigError: there are too many, or two of one name.
    """
    if images is None:
        return {}
    found = expand_sources(images)
    if len(found) > _MOST_IMAGES:
        raise ConfigError(
            Option("images"), f" gives {len(found)} images, and a card shows {_MOST_IMAGES} at most. Choose fewer."
        )
    pictures = {f"images/{path.name}": path for path in found}
    if len(pictures) < len(found):
        raise ConfigError(Option("images"), " gives several images of the same name. Rename one.")
    return pictures


def _folder_of(images: str | Sequence[str] | None) -> Path:
    """Return the folder that may hold a report: the one that the images are in."""
    first = Path(images) if isinstance(images, str) else Path(images[0]) if images else Path("no images")
    return first if first.is_dir() else first.parent


def _native(adapter: Adapter, file: Path | None, path: Path) -> Path:
    """Return the native file: that of the adapter, byte for byte, or one that is written."""
    is_native = adapter.file_format == "native" and adapter.metadata.format
    if is_native and file is not None:
        _copy(file, path)
    else:
        save_adapter(adapter, path)
    return path


def _native_name(config: PushConfig) -> str:
    path = with_name(config.lora_path)
    name = f"{path.name if path.is_dir() else path.stem}.safetensors"
    return "lora.safetensors" if name == TWIN else name


def _twin(adapter: Adapter, folder: Path) -> Saved | None:
    """Write the twin for diffusers; None, with a warning, if that format cannot hold the adapter."""
    try:
        return save_adapter(adapter, folder / TWIN, format="diffusers", wishes=WISHES["diffusers"])
    except OutputError:
        raise
    except InputError as error:
        warn("the repository has no file for diffusers: ", *error.args)
        return None


def _lost(adapter: Adapter, dropped: Sequence[ParamName]) -> str:
    """Return a sentence on what the twin leaves out."""
    if not dropped:
        return "It holds everything."
    return (
        f"It leaves out {counted(dropped)} of the {plural(len(adapter.params), 'parameter')} that the LoRA changes: "
        "diffusers cannot hold them, so its images differ from those of lbm-lora."
    )
