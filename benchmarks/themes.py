"""The themes of the suite: what is run, and against which reference. Each returns the numbers of its result file."""

from benchmarks import themes_apply, themes_calibrate, themes_extract, themes_train
from benchmarks.bench import Theme

THEMES: dict[str, Theme] = {
    "machine": themes_apply.machine_limits,
    "extract": themes_extract.extract,
    "svd": themes_extract.svd,
    "error": themes_extract.error,
    "full_rank": themes_extract.full_rank,
    "several": themes_extract.several,
    "base": themes_apply.base,
    "fuse": themes_apply.fuse,
    "validate": themes_apply.validate,
    "load": themes_apply.load,
    "calibrated": themes_calibrate.calibrated,
    "train": themes_train.train,
    "refine": themes_train.refine,
    "infer": themes_apply.infer,
    "live": themes_apply.live,
    "threads": themes_extract.threads,
    "ranks": themes_extract.ranks,
    "layers": themes_extract.layers,
}
"""Name for `--only` -> theme, in the order of a run."""

ON_DEVICE = ("extract", "infer", "live")
"""The themes that know a device."""
