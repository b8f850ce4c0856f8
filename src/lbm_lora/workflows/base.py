"""Make the exact base that an LBM was trained from: the verb `base`."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from lbm_lora.atomic import guard_output, write_text
from lbm_lora.checkpoint import dtype_of, open_checkpoint
from lbm_lora.configs.base import BaseConfig
from lbm_lora.errors import ConfigError, Option
from lbm_lora.file_plan import MARK_KEY
from lbm_lora.hub import localized
from lbm_lora.model.backbone import Backbone, choose_signature, open_backbone
from lbm_lora.model.baseline import BaselineReport, compare_base
from lbm_lora.model.config import LBMConfig, read_config, read_yaml
from lbm_lora.model.write_base import BaseFiles, twin_paths, write_base
from lbm_lora.progress import SILENT, Progress


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
    lbm = read_config(config.config_path) if config.config_path else LBMConfig()
    _guard(config, tuned)
    with _backbone(config, lbm, progress) as backbone:
        progress.start(len(backbone.unet.specs) + len(backbone.vae.specs), "making the base")
        source = read_yaml(config.config_path) if config.config_path else None
        dtype = dtype_of(config.torch_dtype)
        base = write_base(backbone, lbm, config.save_path, dtype=dtype, source_config=source, progress=progress)
    baseline = _baseline(base.safetensors, tuned, progress)
    return BaseResult(base=base, baseline=baseline, ledger_file=_write_ledger(base))


run_base = run
"""Its name on the public page."""


def ensure_base(
    path: Path,
    *,
    backbone_signature: str | None,
    config_path: Path | None,
    is_made: bool = False,
    progress: Progress = SILENT,
) -> Path:
    """Return the base at `path`, or make it there if it does not exist and a backbone is given.

    Args:
        is_made: make it also without a given backbone, from the configuration's or the default one.
    """
    if path.exists() or (backbone_signature is None and not is_made):
        return path
    progress.note(f"{path} does not exist, so the base is made there.")
    made = run(BaseConfig(save_path=path, config_path=config_path, backbone_signature=backbone_signature), progress)
    return made.base.ckpt if path.suffix != ".safetensors" else made.base.safetensors


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


def _guard(config: BaseConfig, tuned: Path | None) -> None:
    inputs = [path for path in (config.config_path, tuned) if path is not None]
    for output in twin_paths(config.save_path):
        guard_output(output, inputs)


@contextmanager
def _backbone(config: BaseConfig, lbm: LBMConfig, progress: Progress) -> Generator[Backbone]:
    signature, folder = choose_signature(config.backbone_signature, lbm, config.config_path)
    progress.note(f"Backbone: {signature}")
    with open_backbone(signature, lbm, folder=folder) as backbone:
        yield backbone


def _write_ledger(base: BaseFiles) -> Path:
    path = base.safetensors.with_name(f"{base.safetensors.stem}_ledger.json")
    rows = [asdict(item) for item in base.ledger]
    write_text(path, json.dumps({MARK_KEY: "ledger of a base", "tensors": rows}, indent=1) + "\n")
    return path


def _baseline(base: Path, tuned: Path | None, progress: Progress) -> BaselineReport | None:
    if tuned is None:
        return None
    with open_checkpoint(base) as one, open_checkpoint(tuned) as other:
        return compare_base(one.component(), other.component(), progress=progress)
