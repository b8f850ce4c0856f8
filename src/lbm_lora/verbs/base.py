"""Make the exact base that an LBM was trained from: the verb `base`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from lbm_lora.errors import ConfigError, Option
from lbm_lora.progress import SILENT, Progress
from lbm_lora.verbs.options import ADVANCED, File, Named, Overwrite
from lbm_lora.verbs.verb import verb

if TYPE_CHECKING:
    from lbm_lora.model.base import BaseItem
    from lbm_lora.model.baseline import BaselineReport
    from lbm_lora.model.make_base import BaseResult

_ACTIONS = ("copied", "cropped", "padded", "added", "dropped")
_MOST_REASONS = 4


def _text(result: "BaseResult", verbose: bool) -> str:
    """Return the ledger of the base, and its distance from the tuned checkpoint if one was given."""
    from lbm_lora.verbs.lines import file_lines, paragraphs

    items = result.base.ledger if verbose else ()
    rows = [f"  {item.action:<8} {item.key} {item.from_shape} -> {item.to_shape}: {item.reason}" for item in items]
    return paragraphs(
        "\n".join(rows),
        "\n".join(_ledger(result.base.ledger)),
        "" if result.baseline is None else "\n".join(_baseline(result.baseline)),
        "\n".join(result.base.notes),
        file_lines(result.base.safetensors, result.base.ckpt, result.ledger_file),
    )


def _ledger(ledger: "Sequence[BaseItem]") -> list[str]:
    from lbm_lora.report.table import numbers, table, words

    rows = [(action, [item for item in ledger if item.action == action]) for action in _ACTIONS]
    kept = [item for item in ledger if item.action != "dropped"]
    columns = [words("action"), *map(numbers, ("denoiser", "other", "sum")), words()]
    cells = [(action, *_counts(items), _reasons(items)) for action, items in rows]
    return ["Ledger of the base", *table(columns, [*cells, ("in the base", *_counts(kept), "")])]


def _counts(items: "Sequence[BaseItem]") -> tuple[str, str, str]:
    from lbm_lora.naming import DENOISER_PREFIX

    denoiser = sum(item.key.startswith(DENOISER_PREFIX) for item in items)
    return f"{denoiser:,}", f"{len(items) - denoiser:,}", f"{len(items):,}"


def _reasons(items: "Sequence[BaseItem]") -> str:
    """Return the most frequent reasons, with their counts if there are several."""
    reasons = Counter(item.reason for item in items).most_common()
    spelt = [f"{count:,} {reason}" if len(reasons) > 1 else reason for reason, count in reasons[:_MOST_REASONS]]
    more = [f"and {len(reasons) - _MOST_REASONS} more reasons"] if len(reasons) > _MOST_REASONS else []
    return ", ".join([*spelt, *more])


def _baseline(baseline: "BaselineReport") -> list[str]:
    from lbm_lora.report.table import facts, paragraph
    from lbm_lora.report.wording import percent, plural, share

    same = f"{share(baseline.unchanged)} of the elements; {plural(baseline.unchanged_tensors, 'entire tensor')}"
    lines = [
        ("Matched denoiser keys", baseline.matched),
        ("Average difference", f"{baseline.average_difference:.8f}  {baseline.band} (documented band)"),
        ("Maximum difference", f"{baseline.maximum_difference:.8f}"),
        ("unchanged", same),
        ("noise floor", f"{percent(baseline.noise_floor)} of the change is rounding of the tuned file"),
    ]
    meaning = paragraph(baseline.band_meaning) if baseline.band_meaning else []
    return ["Base against the tuned model", *paragraph(baseline.verdict), *facts(lines), *meaning]


@verb(
    "make the exact base from SDXL and LBM's config",
    examples=(
        "lbm-lora base --config_path config.yaml --save_path base.safetensors",
        "lbm-lora base --config_path config.yaml --backbone_signature sd_xl_base_1.0.safetensors --save_path "
        "base.safetensors --tuned_model_path model.safetensors",
    ),
    text=_text,
)
def make_base(
    save_path: File,
    *,
    overwrite: Overwrite = False,
    config_path: File | None = None,
    backbone_signature: Annotated[str | None, Named("BACKBONE")] = None,
    torch_dtype: Literal["float", "fp16", "bf16"] = "bf16",
    tuned_model_path: Annotated[File | None, Named("CHECKPOINT")] = None,
    test_baseline: Annotated[bool, ADVANCED] = False,
    device: Annotated[str, ADVANCED] = "cpu",
    progress: Progress = SILENT,
) -> "tuple[BaseResult, BaseResult]":
    """Make the exact base from a backbone and LBM's config.yaml, as .safetensors and .ckpt.

    Args:
        save_path: Write the base here: OUT.ckpt or OUT.safetensors. Both files are written, whichever you name.
        config_path: Read LBM's settings from this config.yaml. Default: those of the published LBM.
        backbone_signature: Make the base from this backbone: a hub id, a diffusers folder or a single SDXL file.
            Default: the one that the config names, else SDXL from the hub.
        torch_dtype: Store the base in this precision. It must be the one that training started from.
        tuned_model_path: Compare the base with this tuned checkpoint, and say whether it can be its base.
        test_baseline: Compare the base with the model.safetensors next to `config_path`.
        device: Has no effect: the base is always made on the CPU. Kept for the documented command line.

    Returns:
        The files and the ledger of the base, and the comparison with `tuned_model_path` where it is given.

    Raises:
        InputError: invalid input of any kind, before anything is written; see `lbm_lora.errors`.
    """
    from lbm_lora.hub import local_checkpoint
    from lbm_lora.model.make_base import BaseRecipe

    if tuned_model_path is not None:
        tuned = local_checkpoint(tuned_model_path, progress)
    elif not test_baseline:
        tuned = None
    elif config_path is None:
        raise ConfigError(
            Option("test_baseline"),
            " looks for model.safetensors next to ",
            Option("config_path"),
            ". Give one of the two paths.",
        )
    else:
        tuned = Path(config_path).parent / "model.safetensors"
    recipe = BaseRecipe(
        save_path=Path(save_path),
        config_path=None if config_path is None else Path(config_path),
        backbone_signature=backbone_signature,
        torch_dtype=torch_dtype,
        tuned=tuned,
        overwrite=overwrite,
    )
    result = recipe.make(progress)
    return result, result
