"""Command lines out of Python values, and commands run in this process."""

from pathlib import Path

import pytest

from benchmarks.command import arguments, lbm_lora


def test_flags_become_words() -> None:
    found = arguments("data", "pack", Path("a"), ranks=(1, 2), no_mirror=True, size=64, calibration=None)
    assert found == ["data", "pack", "a", "--ranks", "1", "2", "--no_mirror", "--size", "64"]


def test_a_command_that_fails_is_named(tmp_path: Path) -> None:
    line = arguments("layers", model_path=tmp_path / "missing.safetensors")
    with pytest.raises(SystemExit, match=r"^error: lbm-lora layers ended with 2\.$"):
        lbm_lora(line)
