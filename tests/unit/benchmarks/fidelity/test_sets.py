"""The sets of LoRAs: how they are made, with a command line in place of the commands."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.fidelity import sets as module
from benchmarks.fidelity.__main__ import main
from benchmarks.fidelity.sets import Sets, spread
from lbm_lora import bundled


class Held:
    """What is measured of a file: the length of its name."""

    def measure(self, lora: Path | None, kinds: Sequence[str]) -> dict[str, Any]:
        return {"nbytes": len(lora.stem) if lora else 0, "kinds": len(kinds)}


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines that were run; every command says that it made its files."""
    found: list[list[str]] = []

    def lbm_lora(line: list[str]) -> dict[str, Any]:
        found.append(line)
        output = Path(line[line.index("--save_to") + 1])
        if line[0] == "calibrate":
            output.touch()
        count = next((len(sizes) for sizes in _values(line) if len(sizes) > 1), 1)
        results = [{"adapter": str(output.with_stem(f"{output.stem}_{i}")), "predicted": None} for i in range(count)]
        return {**results[0], "adapter": results[0]["adapter"] if count > 1 else str(output), "further": results[1:]}

    monkeypatch.setattr(module, "lbm_lora", lbm_lora)
    monkeypatch.setattr(module, "mini_base", lambda path: path)
    return found


def _values(line: list[str]) -> list[list[str]]:
    """The words after each flag."""
    found: list[list[str]] = []
    for word in line:
        if word.startswith("--"):
            found.append([])
        elif found:
            found[-1].append(word)
    return found


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sets:
    images = [tmp_path / f"{index}.png" for index in range(8)]
    made = Sets(tmp_path / "work", calibration=images, held_out=images, alike=images[:2])
    monkeypatch.setitem(made.__dict__, "_held_out", Held())  # a cached property
    return made


def test_plain_is_a_command_for_each_rank(sets: Sets, lines: list[list[str]]) -> None:
    found = sets.measured("plain")
    assert list(found["files"]) == ["r1", "r2", "r4", "r8", "r16"]
    assert found["files"]["r2"] == {"nbytes": len("plain_r2"), "kinds": 5, "predicted": None}
    assert len(lines) == 5
    assert "--rank 2 --conv_rank 2" in " ".join(lines[1])
    assert sets.measured("plain") == found
    assert len(lines) == 5  # what was made is not made again


def test_a_calibrated_set_has_plains_sizes_and_statistics(sets: Sets, lines: list[list[str]]) -> None:
    found = sets.measured("int8")
    assert list(found["files"]) == ["8B", "9B"]  # five files, of which four have one size and so one name here
    assert [line[0] for line in lines] == [*["extract"] * 5, "calibrate", "extract"]
    assert ["8B", "8B", "8B", "8B", "9B"] in _values(lines[6])
    assert "--save_precision" in lines[6]
    assert str(lines[6][lines[6].index("--calibration") + 1]).endswith("full.statistics.safetensors")
    assert "full" in sets.calibration_seconds()


def test_the_images_of_a_calibration_are_linked_in_a_folder(sets: Sets, lines: list[list[str]], tmp_path: Path) -> None:
    sets.measured("images_4")
    folder = tmp_path / "work" / "images_4.images"
    assert [link.resolve().stem for link in sorted(folder.iterdir())] == ["0", "2", "4", "6"]


def test_a_set_is_refit_on_the_images_of_its_calibration_or_not(sets: Sets, lines: list[list[str]]) -> None:
    assert sets.measured("auto")["files"]["9B"]["kinds"] == 1
    assert "--no_refit" in lines[-1]
    assert sets.measured("auto_refit")["files"]["9B"]["kinds"] == 8
    assert "--no_refit" not in lines[-1]
    assert lines[-1][lines[-1].index("--calibration_images") + 1].endswith("auto_refit.images")
    assert "--no_refit" not in lines[0]  # plain has nothing to refit


def test_only_some_statistics_keep_the_places_of_a_kernel(sets: Sets, lines: list[list[str]]) -> None:
    for name, kept in (("full", False), ("sketch", False), ("auto_convs", True), ("images_1", True)):
        sets.measured(name)
        (calibrate,) = [line for line in lines if line[0] == "calibrate"]
        assert ("--conv_dense_up_to" not in calibrate) is kept
        lines.clear()


def test_images_are_spread_over_the_list() -> None:
    paths = [Path(f"{index}.png") for index in range(10)]
    assert [path.stem for path in spread(paths, 4)] == ["0", "2", "5", "7"]
    assert spread(paths, 99) == spread(paths, None) == paths


def test_images_that_are_measured_are_not_calibrated_on(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="contains held-out images"):
        main(["--work", str(tmp_path), "--calibration_images", str(bundled.PAIRS / "*.source.png")])


def test_an_unknown_set_is_named_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"--only nothing: the sets are plain, plain_convs, full"):
        main(["--work", str(tmp_path), "--only", "nothing"])
