"""Make WebDataset shards of a folder of pairs: the verb `data pack`."""

from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from lbm_lora.errors import ConfigError, Option, OutputError, listing, need_packages
from lbm_lora.progress import SILENT, Progress, warn
from lbm_lora.verbs.options import ADVANCED, POSITIONAL, Count, Folder, Named, Overwrite, Share
from lbm_lora.verbs.verb import verb

if TYPE_CHECKING:
    from lbm_lora.shards.samples import Skipped


@dataclass(frozen=True, kw_only=True)
class PackResult:
    """Written shards."""

    shards: tuple[Path, ...]
    pattern: str
    """All shards as one text, for `train_shards`."""
    pairs: int
    masks: int
    """Pairs with a mask."""
    nbytes: int
    skipped: "tuple[Skipped, ...]"
    """Pairs that were left out."""
    source_key: str
    """Key for training and `data check`, like the next two."""
    target_key: str
    mask_key: str | None
    """None: there are no masks."""


def _text(result: PackResult, verbose: bool) -> str:
    """Return the contents of the shards, their key for a training file, and the command that checks them."""
    from lbm_lora.report.wording import plural
    from lbm_lora.verbs.lines import paragraphs, skipped_lines

    head = (
        f"Packed {plural(result.pairs, 'pair')}, {result.masks:,} with a mask, into "
        f"{plural(len(result.shards), 'shard')}."
    )
    needed = {
        "source_key": None if result.source_key == "source.jpg" else result.source_key,
        "target_key": None if result.target_key == "target.jpg" else result.target_key,
        "mask_key": result.mask_key,
    }
    keys = {name: key for name, key in needed.items() if key is not None}
    flags = "".join(f" --{name} {key}" for name, key in keys.items())
    return paragraphs(
        "\n".join([head, *skipped_lines(result.skipped, verbose)]),
        "\n".join(
            [
                "In a training file:",
                f'  train_shards: ["{result.pattern}"]',
                *(f"  {name}: {key}" for name, key in keys.items()),
            ]
        ),
        f'Next: lbm-lora data check "{result.pattern}"{flags}',
    )


@verb(
    "make WebDataset shards of a folder of pairs",
    examples=("lbm-lora data pack pairs --to shards",),
    text=_text,
)
def pack_data(
    folder: Annotated[Folder, POSITIONAL],
    to: Folder,
    *,
    overwrite: Overwrite = False,
    name: Annotated[str, Named("NAME")] = "pairs",
    shard_mb: Annotated[Count, Named("MB")] = 500,
    shard_count: Count = 10_000,
    max_corrupt: Share = 0.05,
    source_key: Annotated[str, Named("KEY"), ADVANCED] = "source.jpg",
    target_key: Annotated[str, Named("KEY"), ADVANCED] = "target.jpg",
    mask_key: Annotated[str, Named("KEY"), ADVANCED] = "mask.png",
    progress: Progress = SILENT,
) -> tuple[PackResult, PackResult]:
    """Make WebDataset shards of a folder of pairs. Files are copied byte for byte.

    Args:
        folder: Folder of pairs: NAME.source.png and NAME.target.png, or folders source/ and target/ with equal names;
            any image format.
        to: Write the shards to this folder, which must be new or empty, unless `overwrite` is given.
        name: Name of the shards: NAME-000000.tar, NAME-000001.tar and so on.
        shard_mb: Put at most this many megabytes into a shard.
        shard_count: Put at most this many pairs into a shard.
        max_corrupt: Write nothing if a larger share of the pairs than this is unreadable or incomplete.
        source_key: Ending of source images. Its word, `source`, is also the name of their folder; any image extension
            matches.
        target_key: Ending of target images, likewise.
        mask_key: Ending of masks, likewise. Masks are packed if there are any.

    Returns:
        The shards, and the pairs that were left out.

    Raises:
        MissingExtraError: a package of the train extra is not installed.
        DataError: the folder holds no pairs, too many of them are corrupt, or two names become the same.
        OutputError: the folder for the shards cannot be written, or has other files of their names.
    """
    from lbm_lora.files import Outputs, written_bytes
    from lbm_lora.shards import SHARD_PACKAGES

    need_packages("writing shards", SHARD_PACKAGES, "train")
    from lbm_lora.shards.samples import problem_of_name
    from lbm_lora.training.data.pack import pattern_of, shards_of, write_shards
    from lbm_lora.training.data.pairs import Keys, check_corrupt, find_pairs, make_index

    if Path(name).name != name or not name.isprintable() or set(name) & set("{}"):
        raise ConfigError(Option("name"), f" {name} must be a file name: no folders, no braces, no control characters.")
    folder, to = Path(folder), Path(to)
    keys = Keys(source=source_key, target=target_key, mask=mask_key, mask_optional=True)
    found = [replace(one, problem=problem_of_name(one.key)) for one in find_pairs(folder, keys)]
    progress.start(len(found), "reading headers")
    index = make_index(found, keys, progress)
    check_corrupt(str(folder), index.skipped, len(found), max_corrupt)
    members = shards_of(index, to, name=name, max_bytes=shard_mb * 1_000_000, max_count=shard_count)
    if to.exists() and not overwrite and (to.is_file() or any(to.iterdir())):
        raise OutputError(
            f"{to} already exists. Give a new or an empty folder, or use ", Option("overwrite"), " to add to it."
        )
    outputs = Outputs(overwrite=True)
    for number in range(len(index)):
        outputs.reads(*(part.path for part in index.record(number).parts))
    for shard in members:
        outputs.writes(shard, "the shard")
    outputs.check()
    progress.start(len(index), "writing shards")
    write_shards(index, keys, members, progress)
    shards = tuple(members)
    others = sorted(set(to.glob(f"{escape(name)}-[0-9]*.tar")) - {*shards})
    if others:  # whoever reads the folder would read them too
        warn(f"{to} has shards of an earlier data set: {listing(one.name for one in others)}. Remove them.")
    result = PackResult(
        shards=shards,
        pattern=pattern_of(shards),
        pairs=len(index),
        masks=index.masks,
        nbytes=written_bytes(*shards),
        skipped=index.skipped,
        source_key=keys.source,
        target_key=keys.target,
        mask_key=keys.mask if index.masks else None,
    )
    return result, result
