"""Make the exact base that an LBM was trained from, or make sure that there is one."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lbm_lora.checkpoint import dtype_of
from lbm_lora.errors import OutputError, home_path
from lbm_lora.files import MARK_KEY, Outputs, current, together, write_text
from lbm_lora.hub import open_checkpoint
from lbm_lora.model.backbone import choose_signature, find_backbone, open_backbone
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


@dataclass(frozen=True, kw_only=True)
class BaseRecipe:
    """How a base is made; see the verb `base` for its options."""

    save_path: Path
    config_path: Path | None = None
    backbone_signature: str | None = None
    torch_dtype: str = "bf16"
    tuned: Path | None = None
    overwrite: bool = False

    @property
    def config(self) -> LBMConfig:
        """LBM's settings."""
        return read_config(self.config_path) if self.config_path else LBMConfig()

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        """The `.safetensors` and `.ckpt` files of the base, and its ledger."""
        named, twin = twin_paths(self.save_path)
        return named, twin, named.with_name(f"{named.stem}_ledger.json")

    def outputs(self) -> Outputs:
        """Return what is read and written. A backbone on the hub is in the hub's cache, and left out."""
        signature, folder = choose_signature(self.backbone_signature, self.config, self.config_path)
        outputs = Outputs(overwrite=self.overwrite)
        outputs.reads(self.config_path, self.tuned, folder / home_path(signature))
        *bases, ledger = self.paths
        for path in bases:
            outputs.writes(path, "" if path == self.save_path else "the base in the other container,")
        return outputs.writes(ledger, "the ledger")

    def make(self, progress: Progress = SILENT) -> BaseResult:
        """Make the base: a `.safetensors` file, its `.ckpt` twin and a ledger."""
        lbm = self.config
        self.outputs().check()
        if self.tuned is not None:
            with open_checkpoint(self.tuned) as opened:  # before an older base is replaced
                opened.component()
        signature, folder = choose_signature(self.backbone_signature, lbm, self.config_path)
        progress.note(f"Backbone: {signature}")
        source = read_yaml(self.config_path) if self.config_path else None
        with open_backbone(signature, lbm, folder=folder) as backbone, together():
            progress.start(len(backbone.unet.specs) + len(backbone.vae.specs), "making the base")
            dtype = dtype_of(self.torch_dtype)
            base = write_base(backbone, lbm, self.save_path, dtype=dtype, source_config=source, progress=progress)
            *_, ledger = self.paths
            rows = [asdict(item) for item in base.ledger]
            write_text(ledger, json.dumps({MARK_KEY: _LEDGER, "tensors": rows}, indent=1) + "\n")
            baseline = None
            if self.tuned is not None:  # an older base stays if this fails
                with open_checkpoint(current(base.safetensors)) as one, open_checkpoint(self.tuned) as other:
                    one.path = base.safetensors  # messages name the base, which is not there yet
                    baseline = compare_base(one.component(), other.component(), progress=progress)
        return BaseResult(base=base, baseline=baseline, ledger_file=ledger)


def missing_base(
    path: Path,
    *,
    backbone_signature: str | None,
    config_path: Path | None,
    is_made: bool = False,
    overwrite: bool = False,
) -> BaseRecipe | None:
    """Return how a missing base is made; None if it exists, or no backbone is given.

    Args:
        is_made: make it also without a given backbone, from the configuration's or the default one.
        overwrite: whether files next to `path` that are not ours may be replaced.
    """
    if backbone_signature is not None:
        find_backbone(backbone_signature)
    if path.exists() or (backbone_signature is None and not is_made):
        return None
    for twin in twin_paths(path):
        if twin.exists():  # the suffix may be mistyped, and --overwrite is meant for the result
            raise OutputError(
                f"{path} does not exist. A base would be made there and in the other container, over {twin}. If you "
                f"mean {twin}, give that path; else choose another one for the base."
            )
    return BaseRecipe(
        save_path=path, config_path=config_path, backbone_signature=backbone_signature, overwrite=overwrite
    )


def ensure_base(
    path: Path,
    *,
    backbone_signature: str | None,
    config_path: Path | None,
    is_made: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Path:
    """Return the base at `path`; it is made there if it is missing, see `missing_base`."""
    recipe = missing_base(
        path,
        backbone_signature=backbone_signature,
        config_path=config_path,
        is_made=is_made,
        overwrite=overwrite,
    )
    if recipe is None:
        if backbone_signature is not None:
            progress.note(f"{path} exists, so no base is made from {backbone_signature}.")
        return path
    progress.note(f"{path} does not exist, so the base is made there.")
    made = recipe.make(progress)
    return made.base.ckpt if path.suffix != ".safetensors" else made.base.safetensors


def planned_missing(
    path: Path, *, backbone_signature: str | None, config_path: Path | None, is_made: bool = False
) -> Outputs:
    """Return what `ensure_base` reads and writes: nothing if it makes no base."""
    recipe = missing_base(path, backbone_signature=backbone_signature, config_path=config_path, is_made=is_made)
    return Outputs() if recipe is None else recipe.outputs()
