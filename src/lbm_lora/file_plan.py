"""`lbm_lora.files.Outputs` with the old names and keywords, for rooms that are not converted yet."""
# pyright: basic

import os

from lbm_lora.files import Outputs as FilePlan
from lbm_lora.files import is_ours

__all__ = ["FilePlan"]


def _writes(self, path, what="", *, ours=None, may_stay=False):
    if os.path.exists(path) and (may_stay or (ours is not None and not is_ours(path) and ours(path))):
        return self
    self._outputs.append((path, f"{what} {path}".strip()))
    return self


def _check(self, *, overwrite=None, watched=()):
    if overwrite is not None:
        self.overwrite = overwrite
    _strict_check(self)


def _check_apart(self):
    overwrite, self.overwrite = self.overwrite, True
    _strict_check(self)
    self.overwrite = overwrite


_strict_check = FilePlan.check
FilePlan.writes = _writes
FilePlan.check = _check
FilePlan.may_write = lambda self, path, *, ours: None
FilePlan.check_apart = _check_apart
