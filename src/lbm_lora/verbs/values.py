"""Values that callers pass in place of files: checkpoints, LoRAs, images and statistics."""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, runtime_checkable

from torch import nn

from lbm_lora.adapter import Adapter
from lbm_lora.adapter.twins import check_form
from lbm_lora.checkpoint import Checkpoint, CheckpointLike, Component
from lbm_lora.choices import AlphaIs
from lbm_lora.errors import ImageError, OutputError
from lbm_lora.hub import load_adapter, local_lora, open_checkpoint

if TYPE_CHECKING:
    from lbm_lora.calibration import Statistics

T = TypeVar("T")

LoraLike = Path | str | Adapter
"""A LoRA: the path of its file, its name on the hub, or an adapter."""


@runtime_checkable
class ImageLike(Protocol):
    """An image of PIL, which need not be installed."""

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """Write it to a path, in a format of Pillow's name."""
        ...


Images = Path | str | ImageLike | Sequence[Path | str | ImageLike]
"""An image, a folder, a glob, an image of PIL, or a list of those."""


def adapter_of(lora: LoraLike, alpha_is: AlphaIs, base: Component | None = None) -> Adapter:
    """An adapter as it is, or that of a file for a base; see `load_adapter`."""
    return lora if isinstance(lora, Adapter) else load_adapter(lora, alpha_is, base=base)


def listed(loras: LoraLike | Sequence[LoraLike]) -> list[Path | Adapter]:
    """Return one LoRA or several as a list of local files and adapters."""
    several = [loras] if isinstance(loras, LoraLike) else loras
    return [one if isinstance(one, Adapter) else local_lora(one) for one in several]


def path_of(lora: LoraLike, label: str) -> Path:
    """Return the name of a LoRA in messages and reports: its path, or a label if it has none."""
    path = Path(lora) if isinstance(lora, str | Path) else lora.path
    return path or Path(label)


def inputs(*values: object) -> list[Path]:
    """Return the files among values, for `Outputs.reads`: paths, and those that an adapter or a checkpoint has."""
    paths = [value if isinstance(value, str | Path) else getattr(value, "path", None) for value in values]
    return [Path(path) for path in paths if isinstance(path, str | Path)]


def several(value: T | Sequence[T]) -> tuple[T, ...]:
    """Return one value or several as a tuple."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (cast(T, value),)


NetworkLike = CheckpointLike | nn.Module
"""A checkpoint, or a module with its weights."""


def opened_pair(stack: ExitStack, base: NetworkLike, tuned: NetworkLike) -> tuple[Checkpoint, Checkpoint]:
    """Base and tuned, open until the stack is left."""
    return (
        stack.enter_context(open_checkpoint(_weights_of(base), label="base state dict")),
        stack.enter_context(open_checkpoint(_weights_of(tuned), label="tuned state dict")),
    )


def opened_base(stack: ExitStack, base: CheckpointLike | None) -> Checkpoint | None:
    """The base, open until the stack is left; None if none is given."""
    return None if base is None else stack.enter_context(open_checkpoint(base, label="base state dict"))


def _weights_of(network: NetworkLike) -> CheckpointLike:
    return network.state_dict() if isinstance(network, nn.Module) else network


@contextmanager
def image_files(images: Images) -> Generator[str | tuple[str, ...]]:
    """Return images in the form that verbs take: the text of an image, folder or glob, or several.

    Images of PIL are PNG files in a temporary folder meanwhile, `image-1.png` and so on.

    Raises:
        ImageError: an image of PIL has a mode that PNG does not hold.
    """
    if isinstance(images, str | Path):
        yield str(images)
        return
    several = _listed(images)
    with TemporaryDirectory(prefix="lbm-lora-") as folder:
        files = [Path(folder) / f"image-{number}.png" for number in range(1, len(several) + 1)]
        yield tuple(_file(image, path) for image, path in zip(several, files, strict=True))


def opened_files(*images: Images | None) -> list[Path]:
    """Return the files that images of PIL were opened from. Images that were made from such ones have none."""
    in_memory = [given for given in images if given is not None and not isinstance(given, str | Path)]
    names = [getattr(one, "filename", "") for given in in_memory for one in _listed(given)]
    return [Path(name) for name in names if name and isinstance(name, str | Path)]


def _listed(images: ImageLike | Sequence[Path | str | ImageLike]) -> list[Path | str | ImageLike]:
    return [images] if isinstance(images, ImageLike) else list(images)


def _file(image: Path | str | ImageLike, path: Path) -> str:
    """Return an image's path; write a PIL image to `path` first."""
    if isinstance(image, str | Path):
        return str(image)
    from PIL import Image, ImageOps  # whoever has such an image has PIL

    try:
        upright = ImageOps.exif_transpose(image) if isinstance(image, Image.Image) else image  # PNG has no orientation
        upright.save(path, format="PNG")
    except OSError as error:
        if error.errno is not None:
            raise OutputError(
                f"{path.parent.parent} cannot be written to: {error.strerror}. Set TMPDIR to another folder."
            ) from None
        raise ImageError(f"{path.stem}: {error}. Give it in mode RGB: image.convert('RGB').") from None
    return str(path)


def label_of(calibration: "Path | str | Statistics | None") -> Path | None:
    """Return the file of statistics, or what messages and metadata call those that are in memory."""
    if calibration is None:
        return None
    return Path(calibration) if isinstance(calibration, str | Path) else calibration.path or Path("statistics")


def statistics_of(calibration: "Path | str | Statistics | None") -> "Statistics":
    """Return statistics as they are, or those of a file."""
    from lbm_lora.calibration import load_statistics  # only this needs the network classes

    assert calibration is not None
    return load_statistics(Path(calibration)) if isinstance(calibration, str | Path) else calibration


def image_paths(images: str | tuple[str, ...] | None) -> Sequence[Path]:
    """Return the images of a text or a list, none of them read yet; no images for None."""
    from lbm_lora.imaging.paths import expand_sources

    return () if images is None else expand_sources(images)


def checked_image_paths(images: str | tuple[str, ...] | None) -> Sequence[Path]:
    """Return the images of a text or a list, each read once; no images for None."""
    from lbm_lora.imaging.paths import readable_sources

    return () if images is None else readable_sources(images)


def lora_paths(save_to: Path | str, names: Sequence[str]) -> list[Path]:
    """Return a path for each LoRA of a rule: `save_to`, or with the rule's names, `LORA_20MB.safetensors`.

    Raises:
        OutputError: it is not a .safetensors file.
    """
    path = Path(save_to)
    check_form(path)
    return [path.with_stem(f"{path.stem}_{name}" if name else path.stem) for name in names]
