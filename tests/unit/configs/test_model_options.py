"""The options of a model with LoRAs: the base that must be given, and the files that are read."""

from pathlib import Path

import pytest

from lbm_lora.configs.model_options import ModelOptions
from lbm_lora.errors import ConfigError


def test_a_base_must_be_given() -> None:
    assert ModelOptions(base_model_path=Path("b.ckpt")).base == Path("b.ckpt")
    with pytest.raises(ConfigError, match=r"^base_model_path is missing\. Give a base or any LBM checkpoint"):
        _ = ModelOptions().base


def test_every_file_that_is_read_is_guarded() -> None:
    assert ModelOptions().input_files == []
    options = ModelOptions(
        base_model_path=Path("b"),
        lora_path=(Path("l1"), Path("l2")),
        config_path=Path("c"),
        backbone_signature="hub/id",
    )
    assert set(options.input_files) == {Path("b"), Path("c"), Path("l1"), Path("l2")}
