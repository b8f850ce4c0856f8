"""Read a complete data set: the verb `data check`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lbm_lora.errors import ConfigError, Option, QualityError
from lbm_lora.progress import SILENT, Progress
from lbm_lora.verbs.options import (
    ADVANCED,
    POSITIONAL,
    Batch,
    File,
    Folder,
    Named,
    Several,
    Share,
    Size,
    Workers,
)
from lbm_lora.verbs.verb import verb

if TYPE_CHECKING:
    from lbm_lora.training.data.check import Checked


@dataclass(frozen=True, kw_only=True)
class CheckedSplit:
    """Findings in one split of the data."""

    split: str
    found: "Checked"


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """Findings in all splits of the data."""

    splits: tuple[CheckedSplit, ...]
    failures: tuple[QualityError, ...]
    """Splits with too many corrupt samples."""


def _text(result: CheckResult, verbose: bool) -> str:
    """Return the findings in each split of the data."""
    return "\n\n".join(_checked(split.split, split.found, verbose) for split in result.splits)


def _checked(split: str, found: "Checked", verbose: bool) -> str:
    from lbm_lora.report.wording import megabytes, plural
    from lbm_lora.verbs.lines import skipped_lines

    masks = plural(found.masks, "mask") + (f", {found.mask_share:.1%} white on average" if found.mask_share else "")
    buckets = ", ".join(f"{count.width}x{count.height}: {count.samples:,}" for count in found.buckets)
    return "\n".join(
        [
            f"{split}: {found.where}",
            f"  {plural(found.pairs, 'pair')}, {megabytes(found.nbytes)}, {masks}",
            f"  {len(found.skipped):,} cannot be used ({found.corrupt_share:.1%})",
            *skipped_lines(found.skipped, verbose, indent=4),
            f"  sizes in training: {buckets}",
            f"  {plural(found.steps, 'step')} in an epoch",
            *(f"  {note}" for note in found.notes),
        ]
    )


@verb(
    "read a complete data set and report",
    examples=(
        "lbm-lora data check pairs",
        "lbm-lora data check 'shards/pairs-{000000..000009}.tar' --image_size 512 1024",
    ),
    text=_text,
)
def check_data(
    data: Annotated[Several[str], Named("DATA"), POSITIONAL] = (),
    *,
    path_config: File | None = None,
    image_size: Several[Size] = (512,),
    batch_size: Batch = 8,
    max_corrupt: Share = 0.05,
    source_key: Annotated[str, Named("KEY"), ADVANCED] = "source.jpg",
    target_key: Annotated[str, Named("KEY"), ADVANCED] = "target.jpg",
    mask_key: Annotated[str | None, Named("KEY"), ADVANCED] = None,
    num_workers: Annotated[Workers, ADVANCED] = 0,
    cache_dir: Annotated[Folder | None, ADVANCED] = None,
    allow_pipe: Annotated[bool, ADVANCED] = False,
    progress: Progress = SILENT,
) -> tuple[CheckResult, CheckResult]:
    """Read every pixel of a data set, and report what training would find.

    Args:
        data: A folder of pairs or of shards, or shards: paths, URLs, patterns with {000..009}.
        path_config: Check the data of this training file, with its keys and sizes, instead of DATA.
        image_size: Square roots of the pixel budgets that training will use.
        batch_size: Samples per training step, all processes together. Sets the number of steps in the report.
        max_corrupt: Fail if a larger share of the samples than this is unreadable or incomplete.
        source_key: Ending of a sample's source image. Any image extension matches.
        target_key: Ending of a sample's target image.
        mask_key: Ending of a sample's mask, such as mask.png. Every sample must then have one. Default: no masks.
        num_workers: Read with this many extra processes. 0 reads in the command's own process.
        cache_dir: Copy shards from URLs into this folder.
        allow_pipe: Allow `pipe:` shards, which run a shell command.

    Returns:
        The findings; `failures` are the splits with too many corrupt samples.

    Raises:
        ConfigError: neither data nor a training file is given, or both; or a setting is invalid.
        DataError: the data cannot be read, or have no usable samples.
    """
    from lbm_lora.training.data.check import read_through
    from lbm_lora.training.data.dataset import open_data
    from lbm_lora.training.settings import DataSettings, read_train_config
    from lbm_lora.training.training_file import COMMAND_LINE, parse
    from lbm_lora.verbs.values import several

    places = several(data)
    if len(places) == 1 and str(places[0]).endswith((".yaml", ".yml")) and path_config is None:
        places, path_config = (), places[0]
    if path_config is None and not places:
        raise ConfigError(
            "Name the data to check: a folder, shards, or a training file with ", Option("path_config"), "."
        )
    if path_config is not None and places:
        raise ConfigError(f"'{places[0]}' and ", Option("path_config"), " both name the data. Give one of them.")
    if path_config is not None:
        settings = read_train_config(Path(path_config))
        batch_size = settings.batch_size
    else:
        values = {
            "source_key": source_key,
            "target_key": target_key,
            "mask_key": mask_key,
            "image_size": several(image_size),
            "cache_dir": cache_dir,
            "allow_pipe": allow_pipe,
            "max_corrupt": max_corrupt,
        }
        settings = parse(DataSettings, _place(tuple(map(str, places))) | values, where=COMMAND_LINE)
    counting = settings.model_copy(update={"max_corrupt": 1.0})
    splits: list[CheckedSplit] = []
    for name in ("train", "validation") if settings.has_validation else ("train",):
        found = read_through(
            open_data(counting, name, seed=0, progress=progress),
            batch_size=batch_size,
            cover=name == "validation",
            num_workers=num_workers,
            progress=progress,
        )
        splits.append(CheckedSplit(split=name, found=found))
    result = CheckResult(splits=tuple(splits), failures=tuple(_failures(splits, settings.max_corrupt)))
    return result, result


def _place(data: Sequence[str]) -> dict[str, object]:
    """Return the key of a training file for the location of the data, and its value."""
    from lbm_lora.errors import home_path
    from lbm_lora.training.data.pairs import SHARD_NAMES

    folder = home_path(data[0])
    if len(data) > 1 or not folder.is_dir():
        return {"train_shards": tuple(data)}
    shards = sorted(str(path) for path in folder.iterdir() if path.name.endswith(SHARD_NAMES))
    return {"train_shards": tuple(shards)} if shards else {"train_folder": str(folder)}


def _failures(splits: Sequence[CheckedSplit], max_corrupt: float) -> Iterator[QualityError]:
    for split in splits:
        share = split.found.corrupt_share
        if share > max_corrupt:
            yield QualityError(
                f"{split.found.where}: {100 * share:.1f} % of the samples cannot be used, more than the "
                f"{100 * max_corrupt:g} % of ",
                Option("max_corrupt"),
                ".",
            )
