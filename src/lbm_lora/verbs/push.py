"""Publish a LoRA on the Hugging Face hub: the verb `push`."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

from lbm_lora.errors import ConfigError, InputError, Option, OutputError, plural, with_name
from lbm_lora.progress import SILENT, Progress, warn
from lbm_lora.verbs.options import ADVANCED, POSITIONAL, Images, Lora, Named, OutputFolder, Overwrite
from lbm_lora.verbs.verb import verb

if TYPE_CHECKING:
    from lbm_lora.adapter import Adapter, Saved
    from lbm_lora.naming import ParamName

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
    dropped: "tuple[ParamName, ...]" = field(repr=False)
    """Parameters that the file for diffusers leaves out."""


def _text(result: PushResult, verbose: bool) -> str:
    """Return where the LoRA was published, and its files."""
    from lbm_lora.report.table import numbers, table, words
    from lbm_lora.report.wording import megabytes, printable
    from lbm_lora.verbs.lines import paragraphs

    head, use, left_out = f"Published at {result.url}", f"Use it: --lora_path {result.repo}", ""
    if result.folder is not None:
        head, use = printable(f"Written to {result.folder}. Nothing was uploaded."), ""
    if result.dropped:
        left_out = f"The file for diffusers leaves out {plural(len(result.dropped), 'tensor')} that it cannot hold."
    rows = [(megabytes(file.nbytes), file.path) for file in result.files]
    return paragraphs(
        "\n".join([head, *table([numbers(), words()], rows)]),
        "\n".join(filter(None, [left_out, *(result.dropped if verbose else ())])),
        use,
    )


@verb(
    "publish a LoRA on the Hugging Face hub, with a model card",
    examples=(
        "lbm-lora push lora.safetensors --to user/repo --images relit",
        "lbm-lora push lora.safetensors --to user/repo --private --save_to look",
    ),
    text=_text,
)
def push(
    lora: Annotated[Lora, POSITIONAL],
    to: Annotated[str, Named("USER/REPO")],
    *,
    overwrite: Overwrite = False,
    private: bool = False,
    images: Images | None = None,
    base_model: Annotated[str | None, Named("USER/REPO")] = None,
    license: Annotated[str, Named("LICENSE")] = "cc-by-nc-4.0",
    message: Annotated[str | None, Named("TEXT"), ADVANCED] = None,
    save_to: OutputFolder = None,
    progress: Progress = SILENT,
) -> tuple[PushResult, PushResult]:
    """Publish a LoRA on the Hugging Face hub, in one commit: its file, its twin for diffusers, and a model card.
    Log in first: `hf auth login`, or HF_TOKEN.

    Args:
        lora: The LoRA, of any format.
        to: Repository to publish it in, created if it does not exist. USER/REPO@BRANCH commits to another branch than
            main.
        private: Make the repository private. An existing public one is refused.
        images: Show these pictures on the card: images, folders or quoted globs, 12 at most. A report folder of
            `lbm-lora validate` also gives its measurements.
        base_model: Model on the hub that the LoRA is for. Default: SDXL, from which the exact base is made, if the
            LoRA has its widths.
        license: License, by the hub's identifier, which the hub checks. LoRAs of LBM's published weights inherit the
            default.
        message: Message of the commit. Default: Upload NAME.
        save_to: Write the repository's files to this folder to look at them, and upload nothing.

    Returns:
        The page, the commit and the files of the repository.

    Raises:
        HubError: the hub refuses the token or the commit, or cannot be reached.
        InputError: invalid input of any kind (see `lbm_lora.errors`); nothing is uploaded then.
    """
    from lbm_lora.adapter.adapter_file import is_unchanged
    from lbm_lora.files import write_text, written_bytes
    from lbm_lora.hub.card import check_card
    from lbm_lora.hub.publish import CARD, check_replaced, destination, publish
    from lbm_lora.imaging.digests import digests_of
    from lbm_lora.verbs.values import adapter_of, image_files, listed, path_of

    name = destination(to)
    (local,) = listed(lora)
    path = path_of(local, "lora")
    folder = None if save_to is None else Path(save_to)
    with ExitStack() as stack:
        given = None if images is None else stack.enter_context(image_files(images))
        pictures = _pictures(given)
        native = _native_name(path)
        if folder is not None:
            _check_outputs(folder, {native: path, **pictures}, overwrite)
        adapter = adapter_of(local, "auto")
        base_model = base_model or _default_base(adapter)
        digests_of(list(pictures.values()))  # each can be read
        file = adapter.path if is_unchanged(adapter) else None
        temporary = Path(stack.enter_context(TemporaryDirectory(prefix="lbm-lora-")))
        _write_native(adapter, file, temporary / native)
        twin = _write_twin(adapter, temporary)
        text = _card(
            adapter,
            temporary / native,
            twin,
            repo=name.repo,
            base_model=base_model,
            license=license,
            images=[*pictures],
            report=_folder_of(given),
            file=file,
        )
        check_card(text)
        write_text(temporary / CARD, text)
        twins = {} if twin is None else {TWIN: twin.path}
        files = {CARD: temporary / CARD, native: temporary / native, **twins, **pictures}
        commit = None
        if folder is not None:
            _write_folder(folder, files)
        else:
            newest = check_replaced(name, files, overwrite=overwrite)
            message = message or f"Upload {native}"
            commit = publish(name, files, private=private, message=message, on=newest, progress=progress)
        result = PushResult(
            repo=name.repo,
            url="" if commit is None else commit.url,
            commit="" if commit is None else commit.id,
            folder=folder,
            files=tuple(PushedFile(path=path, nbytes=written_bytes(file)) for path, file in files.items()),
            dropped=() if twin is None else twin.dropped,
        )
    return result, result


def _check_outputs(folder: Path, sources: Mapping[str, Path], overwrite: bool) -> None:
    """Check the files of `save_to`; another one with the bytes of its source is the copy of an earlier `push`."""
    from lbm_lora.files import Outputs, file_digest, is_same
    from lbm_lora.hub.publish import CARD

    outputs = Outputs(overwrite=overwrite).reads(*sources.values()).writes(folder / CARD).writes(folder / TWIN)
    for name, source in sources.items():
        path = folder / name
        are_files = path.is_file() and source.is_file() and not is_same(path, source)
        if not are_files or file_digest(path) != file_digest(source):
            outputs.writes(path)
    outputs.check()


def _write_folder(folder: Path, files: Mapping[str, Path]) -> None:
    from lbm_lora.files import together

    with together():
        for name, file in files.items():
            _copy(file, folder / name)
    if TWIN not in files and (folder / TWIN).exists():
        warn(f"{folder / TWIN} is of an earlier LoRA: this one has none for diffusers. Remove it.")


def _copy(file: Path, path: Path) -> None:
    from lbm_lora.files import atomic_path

    with atomic_path(path) as temporary:
        shutil.copyfile(file, temporary)


def _default_base(adapter: "Adapter") -> str:
    """Return the backbone of LBM, if the adapter is for networks of its widths."""
    from lbm_lora.model.constants import LBM_UNET, SDXL_SIGNATURE
    from lbm_lora.model.names import empty_unet, shapes_of

    shapes = shapes_of(empty_unet(LBM_UNET))
    if all(shapes.get(name) == adapter.shape_of(name) for name in adapter.params):
        return SDXL_SIGNATURE
    raise ConfigError(
        f"{adapter.label} is not for networks of SDXL's widths. Name the model on the hub that it is for: ",
        Option("base_model"),
        " user/repo.",
    )


def _pictures(images: str | Sequence[str] | None) -> dict[str, Path]:
    """Return path in the repository -> picture."""
    from lbm_lora.verbs.values import image_paths

    found = image_paths(images if images is None or isinstance(images, str) else tuple(images))
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


def _native_name(lora: Path) -> str:
    path = with_name(lora)
    name = f"{path.name if path.is_dir() else path.stem}.safetensors"
    return "lora.safetensors" if name == TWIN else name


def _write_native(adapter: "Adapter", file: Path | None, path: Path) -> None:
    """Write the native file: that of the adapter, byte for byte, if it has one."""
    from lbm_lora.adapter import save_adapter

    if file is not None and adapter.file_format == "native" and adapter.metadata.format:
        _copy(file, path)
    else:
        save_adapter(adapter, path)


def _write_twin(adapter: "Adapter", folder: Path) -> "Saved | None":
    """Write the twin for diffusers; None, with a warning, if that format cannot hold the adapter."""
    from lbm_lora.adapter import save_adapter
    from lbm_lora.adapter.formats import WISHES

    try:
        return save_adapter(adapter, folder / TWIN, format="diffusers", wishes=WISHES["diffusers"])
    except OutputError:
        raise
    except InputError as error:
        warn("the repository has no file for diffusers: ", *error.args)
        return None


def _card(
    adapter: "Adapter",
    native: Path,
    twin: "Saved | None",
    *,
    repo: str,
    base_model: str,
    license: str,
    images: Sequence[str],
    report: Path,
    file: Path | None,
) -> str:
    """Return the text of the model card.

    Args:
        report: folder that may hold the report of `validate` on the file of the LoRA.
    """
    from lbm_lora.files import written_bytes
    from lbm_lora.hub.card import CardFacts, card_text, content_rows, error_rows, measured_errors, report_rows
    from lbm_lora.model.constants import SDXL_SIGNATURE

    errors = measured_errors(adapter)
    return card_text(
        CardFacts(
            repo=repo,
            base_model=base_model,
            is_backbone=base_model == SDXL_SIGNATURE,
            license=license,
            lora=native.name,
            twin=None if twin is None else TWIN,
            contents=content_rows(adapter, written_bytes(native)),
            measured=[*error_rows(errors), *report_rows(report, lora=file)],
            lost="" if twin is None else _lost(adapter, twin.dropped),
            remarks=() if twin is None else twin.notes,
            images=images,
            relative_error=errors.get("relative_error"),
        )
    )


def _lost(adapter: "Adapter", dropped: "Sequence[ParamName]") -> str:
    """Return a sentence on what the twin leaves out."""
    from lbm_lora.adapter.formats.names import counted

    if not dropped:
        return "It holds everything."
    return (
        f"It leaves out {counted(dropped)} of the {plural(len(adapter.params), 'parameter')} that the LoRA changes: "
        "diffusers cannot hold them, so its images differ from those of lbm-lora."
    )
