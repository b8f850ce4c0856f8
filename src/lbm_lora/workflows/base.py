"""Make the exact base that an LBM was trained from: the verb `base`."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from lbm_lora.checkpoint import dtype_of, open_checkpoint
from lbm_lora.configs.base import BaseConfig
from lbm_lora.errors import ConfigError, Option, OutputError
from lbm_lora.files import MARK_KEY, Outputs, current, together, write_text
from lbm_lora.hub import localized
from lbm_lora.missing_path import home_path
from lbm_lora.model.backbone import Backbone, choose_signature, find_backbone, open_backbone
from lbm_lora.model.base import BaseFiles, twin_paths, write_base
from lbm_lora.model.baseline import BaselineReport, compare_base
from lbm_lora.model.config import LBMConfig, read_config, read_yaml
from lbm_lora.progress import SILENT, Progress

_LEDGER = "ledger of a base"
"""Its kind: the value of `MARK_KEY`."""


@dataclass(frozen=True, kw_only=True)
class BaseResult:
    """Files and ledger of the base, and its comparison with the tuned checkpoint if one was given."""

    base: BaseFiles
    baseline: BaselineReport | None
    ledger_file: Path
    """The ledger as JSON: the outcome of every tensor, with its shapes and the reason."""


def run(config: BaseConfig, progress: Progress = SILENT) -> BaseResult:
    """Make the exact base of a backbone: a `.safetensors` file, its `.ckpt` twin and a ledger.

    Raises:
        InputError: invalid input of any kind, before anything is written; see `lbm_lora.errors`.
    """
    config = localized(config, progress)
    tuned = _tuned_path(config)
    lbm = _lbm_config(config)
    planned(config, lbm).check()
    if tuned is not None:
        with open_checkpoint(tuned) as opened:  # before an older base is replaced
            opened.component()
    with _backbone(config, lbm, progress) as backbone:
        progress.start(len(backbone.unet.specs) + len(backbone.vae.specs), "making the base")
        source = read_yaml(config.config_path) if config.config_path else None
        dtype = dtype_of(config.torch_dtype)
        with together():
            base = write_base(backbone, lbm, config.save_path, dtype=dtype, source_config=source, progress=progress)
            ledger_file = _write_ledger(base)
            baseline = _baseline(base.safetensors, tuned, progress)  # an older base stays if this fails
    return BaseResult(base=base, baseline=baseline, ledger_file=ledger_file)


run_base = run
"""Its name on the public page."""


def ensure_base(
    path: Path,
    *,
    backbone_signature: str | None,
    config_path: Path | None,
    is_made: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Path:
    """Return the base at `path`, or make it there if it does not exist and a backbone is given.

    Args:
        is_made: make it also without a given backbone, from the configuration's or the default one.
        overwrite: whether files next to `path` that are not ours may be replaced.
    """
    config = _missing(path, backbone_signature, config_path, is_made=is_made, overwrite=overwrite)
    if config is None:
        if backbone_signature is not None:
            progress.note(f"{path} exists, so no base is made from {backbone_signature}.")
        return path
    progress.note(f"{path} does not exist, so the base is made there.")
    made = run(config, progress)
    return made.base.ckpt if path.suffix != ".safetensors" else made.base.safetensors


def planned_missing(
    path: Path, *, backbone_signature: str | None, config_path: Path | None, is_made: bool = False
) -> Outputs:
    """Return what `ensure_base` reads and writes: nothing if it makes no base.

    Raises:
        OutputError: the base's twin would replace a file.
    """
    config = _missing(path, backbone_signature, config_path, is_made=is_made)
    if config is None:
        return Outputs()
    for twin in twin_paths(path):
        if twin.exists():  # the suffix may be mistyped, and --overwrite is meant for the result
            raise OutputError(
                f"{path} does not exist. A base would be made there and in the other container, over {twin}. If you "
                f"mean {twin}, give that path; else choose another one for the base."
            )
    return planned(config, _lbm_config(config))


def planned(config: BaseConfig, lbm: LBMConfig | None = None) -> Outputs:
    """Return what the command reads and writes. A backbone on the hub is in the hub's cache, and left out.

    Args:
        lbm: the contents of its config.yaml; None: read from there.
    """
    signature, folder = choose_signature(config.backbone_signature, lbm or _lbm_config(config), config.config_path)
    outputs = Outputs(overwrite=config.overwrite)
    outputs.reads(config.config_path, _tuned_path(config), folder / home_path(signature))
    *bases, ledger = base_paths(config.save_path)
    for path in bases:
        outputs.writes(path, "" if path == config.save_path else "the base in the other container,")
    return outputs.writes(ledger, "the ledger")


def base_paths(save_path: Path) -> tuple[Path, Path, Path]:
    """Return the `.safetensors` and `.ckpt` files of a base, and its ledger.

    Raises:
        OutputError: the path has another suffix.
    """
    named, twin = twin_paths(save_path)
    return named, twin, named.with_name(f"{named.stem}_ledger.json")


def makes_base(path: Path, *, backbone_signature: str | None, is_made: bool = False) -> bool:
    """Return whether `ensure_base` makes a base: there is none, and a backbone or `is_made` is given."""
    return not path.exists() and (backbone_signature is not None or is_made)


def _missing(
    path: Path, backbone_signature: str | None, config_path: Path | None, *, is_made: bool, overwrite: bool = False
) -> BaseConfig | None:
    """Return how a missing base is made; None if it exists, or no backbone is given.

    Raises:
        CheckpointError: the given backbone names nothing, also where the base exists and needs none.
    """
    if backbone_signature is not None:
        find_backbone(backbone_signature)
    if not makes_base(path, backbone_signature=backbone_signature, is_made=is_made):
        return None
    return BaseConfig(
        save_path=path, config_path=config_path, backbone_signature=backbone_signature, overwrite=overwrite
    )


def _lbm_config(config: BaseConfig) -> LBMConfig:
    return read_config(config.config_path) if config.config_path else LBMConfig()


def _tuned_path(config: BaseConfig) -> Path | None:
    if config.tuned_model_path is not None or not config.test_baseline:
        return config.tuned_model_path
    if config.config_path is None:
        raise ConfigError(
            Option("test_baseline"),
            " looks for model.safetensors next to ",
            Option("config_path"),
            ". Give one of the two paths.",
        )
    return config.config_path.parent / "model.safetensors"


@contextmanager
def _backbone(config: BaseConfig, lbm: LBMConfig, progress: Progress) -> Generator[Backbone]:
    signature, folder = choose_signature(config.backbone_signature, lbm, config.config_path)
    progress.note(f"Backbone: {signature}")
    with open_backbone(signature, lbm, folder=folder) as backbone:
        yield backbone


def _write_ledger(base: BaseFiles) -> Path:
    *_, path = base_paths(base.safetensors)
    rows = [asdict(item) for item in base.ledger]
    write_text(path, json.dumps({MARK_KEY: _LEDGER, "tensors": rows}, indent=1) + "\n")
    return path


def _baseline(base: Path, tuned: Path | None, progress: Progress) -> BaselineReport | None:
    if tuned is None:
        return None
    with open_checkpoint(current(base)) as one, open_checkpoint(tuned) as other:
        one.path = base  # messages name the base, which is not there yet
        return compare_base(one.component(), other.component(), progress=progress)
