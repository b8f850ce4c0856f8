"""What a training file may not say, and the line that says so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lbm_lora.errors import ConfigError
from lbm_lora.training.settings.train_config import read_train_config

SMALL: dict[str, Any] = {"train_folder": "pairs", "base_model_path": "base.safetensors", "lora_rank": 4}


@pytest.fixture
def said(tmp_path: Path) -> Callable[..., str]:
    """`said({"batch_size": 0})`: the error of a small file with these values, without its place."""

    def error(values: dict[str, Any] | str, overrides: tuple[tuple[str, str], ...] = ()) -> str:
        path = tmp_path / "train.yaml"
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(SMALL | values))
        with pytest.raises(ConfigError) as caught:
            read_train_config(path, overrides)
        return str(caught.value).replace(str(path), "train.yaml")

    return error
