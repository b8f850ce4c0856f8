"""What the files of a comparison say of themselves."""

import json
from pathlib import Path

import pytest

from lbm_lora.adapter import Adapter, AdapterMetadata
from lbm_lora.fidelity.lora_files import lora_files


def adapter(path: Path | None, settings: dict[str, object] | None) -> Adapter:
    """An adapter with nothing but its metadata."""
    facts = {} if settings is None else {"lbm_lora_settings": json.dumps(settings)}
    return Adapter(modules={}, dense={}, metadata=AdapterMetadata(facts=facts), path=path)


@pytest.mark.parametrize(
    ("settings", "series", "ranks"),
    [
        (
            {"method": "plain", "dtype": "bf16", "rank_policy": "fixed", "rank": 16, "conv_rank": 16},
            "plain, bf16, equal ranks",
            "rank 16",
        ),
        (
            {"method": "plain", "dtype": "bf16", "rank_policy": "fixed", "rank": 32, "conv_rank": 16},
            "plain, bf16, conv rank 1/2 of rank",
            "rank 32, conv 16",
        ),
        (
            {"method": "calibrated", "dtype": "fp16", "rank_policy": "max_size", "max_size": "9MB"},
            "calibrated, fp16, ranks chosen across layers",
            "",
        ),
        (
            {"method": "plain", "dtype": "int8", "rank_policy": "keep_energy", "keep_energy": 0.9},
            "plain, int8, same energy in each layer",
            "",
        ),
        ({"rank_policy": "other"}, "other", ""),
        (None, "not said", ""),
    ],
)
def test_what_a_file_says(tmp_path: Path, settings: dict[str, object] | None, series: str, ranks: str) -> None:
    path = tmp_path / "l.safetensors"
    path.write_bytes(b"123")
    (found,) = lora_files({"base + LoRA": adapter(path, settings), "in memory": adapter(None, settings)})
    assert (found.variant, found.file, found.nbytes) == ("base + LoRA", "l.safetensors", 3)
    assert (found.series, found.ranks) == (series, ranks)
