"""The text: one screen of 40 lines and 80 columns, whatever the file holds; nothing in it steers a terminal."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lbm_lora.configs.inspect import InspectConfig
from lbm_lora.report.inspection.adapter_values import BlockFacts
from lbm_lora.report.inspection.text import HEIGHT, WIDTH, block_table, screen
from lbm_lora.workflows.inspect import run

Rand = Callable[..., Tensor]


def write_lora(path: Path, rand: Rand, names: list[str], metadata: dict[str, str] | None = None) -> Path:
    tensors = {f"{name}.lora_up.weight": rand(4, 2) for name in names}
    save_file(tensors | {f"{name}.lora_down.weight": rand(2, 3) for name in names}, path, metadata=metadata)
    return path


def fits_a_screen(text: str) -> bool:
    lines = text.split("\n")
    return len(lines) <= HEIGHT and all(len(line) <= WIDTH for line in lines)


HOSTILE = {f"key{i}\x1b[2J": "\x1b]0;title\x07\u202e" + "v" * 5000 for i in range(50)} | {"deep": "{" * 9999}


def test_a_hostile_file_fits_a_screen_and_is_escaped(tmp_path: Path, rand: Rand) -> None:
    names = [f"x\x1b[31m{i}{'y' * 300}.l" for i in range(60)]
    path = write_lora(tmp_path / ("n" * 100 + "\x1b[1m.safetensors"), rand, names, HOSTILE)
    text = screen(run(InspectConfig(files=(path,))))
    assert fits_a_screen(text)
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "\\x1b[1m" in text
    assert "blocks more (--json lists all)" in text


def test_a_hostile_checkpoint_fits_too(tmp_path: Path, rand: Rand) -> None:
    path = tmp_path / "c.safetensors"
    name = "a\x1b[5m" * 60
    save_file({f"{name}{i}.weight": rand(2) for i in range(90)}, path, metadata=HOSTILE)
    text = screen(run(InspectConfig(files=(path,))))
    assert fits_a_screen(text)
    assert all(char.isprintable() or char == "\n" for char in text)


def test_two_hostile_files_fit_too(tmp_path: Path, rand: Rand) -> None:
    paths = [
        write_lora(tmp_path / f"{first}.safetensors", rand, [f"b{i}.\x1b[31m" + "y" * 200 for i in range(first, 70)])
        for first in (0, 5)
    ]
    text = screen(run(InspectConfig(files=(paths[0], paths[1]))))
    assert fits_a_screen(text)
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "65 different, 5 only in the first" in text


def test_the_header_takes_the_room_that_is_left(tmp_path: Path, rand: Rand) -> None:
    path = write_lora(tmp_path / "l.safetensors", rand, ["a"], {f"key{i:02}": "v" for i in range(60)})
    lines = screen(run(InspectConfig(files=(path,)))).split("\n")
    assert len(lines) == HEIGHT
    listed = sum(line.startswith("  key") for line in lines)
    assert lines[-1] == f"  and {60 - listed} lines more (--json lists all)"


def test_numbers_of_the_largest_files_are_not_cut() -> None:
    block = BlockFacts(
        block="time_embedding",
        tensors=656,
        nbytes=2_295_170_000,
        norm=1.9164e5,
        share=0.00001,
        ranks=100_208,
        ranks_90=88_932,
        ranks_99=100_208,
    )
    lines = block_table([block], 10, has_ranks=True)
    assert " ".join(lines[1].split()) == "time_embedding 656 2.30 GB 1.92e+05 < 0.01 % 100,208 88,932 100,208"
    assert all(len(line) <= WIDTH for line in lines)


def test_the_same_file_twice(tmp_path: Path, rand: Rand) -> None:
    path = write_lora(tmp_path / "l.safetensors", rand, ["a"])
    text = screen(run(InspectConfig(files=(path, path))))
    assert "the same bits everywhere" in text
    assert "largest differences" not in text


@pytest.mark.parametrize("other", ["lora", "checkpoint"])
def test_statistics_cannot_be_compared(other: str, tmp_path: Path, rand: Rand) -> None:
    statistics = tmp_path / "s.safetensors"
    save_file({"x": torch.ones(2)}, statistics, metadata={"lbm_lora_statistics": "1"})
    second = write_lora(tmp_path / "l.safetensors", rand, ["a"])
    if other == "checkpoint":
        save_file({"denoiser.a.weight": torch.ones(2)}, second)
    text = screen(run(InspectConfig(files=(statistics, second))))
    assert "files of these two kinds cannot be compared" in text
