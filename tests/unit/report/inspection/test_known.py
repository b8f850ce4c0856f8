"""Known fingerprints: those of the bundled model and of the base that is derived from its backbone."""

import warnings
from pathlib import Path

import pytest

from lbm_lora import make_base
from lbm_lora.bundled import BACKBONE, TUNED
from lbm_lora.checkpoint import fingerprint, open_checkpoint
from lbm_lora.report.inspection.known import KNOWN


def test_the_bundled_model_is_known() -> None:
    with open_checkpoint(TUNED) as tuned:
        assert KNOWN[fingerprint(tuned.component()).digest] == "the bundled mini model"


@pytest.mark.slow
def test_its_exact_base_is_known(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = make_base(
            tmp_path / "base.safetensors", config_path=TUNED / "config.yaml", backbone_signature=str(BACKBONE)
        )
    with open_checkpoint(made.base.safetensors) as base:
        assert KNOWN[fingerprint(base.component()).digest] == "the exact base of the bundled mini model"
