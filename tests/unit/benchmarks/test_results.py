"""Result files, and the command lines that they name."""

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine
from benchmarks.results import command_of, newest, write_result


def test_a_result_is_named_by_theme_machine_and_date(tmp_path: Path) -> None:
    path = write_result(tmp_path, "extract", cores=2, command="python -m benchmarks", settings={}, pair={}, number=1.5)
    content = json.loads(path.read_text())
    assert path.name == f"extract_{machine.slug(2)}_{content['date'][:10]}.json"
    assert content["machine"]["cores used"] == 2
    assert "torch" in content["versions"]
    assert newest(tmp_path, command="make bench")["extract"]["number"] == 1.5


def test_the_newest_result_of_a_theme_counts(tmp_path: Path) -> None:
    # 08:00 in Tokyo is 23:00 of the day before in Greenwich
    for date, number in (("2026-01-03T01:00:00+00:00", 1), ("2026-01-03T08:00:00+09:00", 2)):
        content = {"schema": 1, "theme": "extract", "date": date, "number": number}
        (tmp_path / f"extract_m_{number}.json").write_text(json.dumps(content))
    assert newest(tmp_path, command="make bench")["extract"]["number"] == 1


@dataclass(frozen=True)
class Options:
    pairs: Path
    only: tuple[str, ...] = ()
    scale: float = 1.0
    work: Path = Path("work")


def test_a_command_has_what_is_no_default_and_no_folder_of_this_machine() -> None:
    assert command_of("p", Options(Path("/home/me/pairs"), ("a", "b"), 0.5, Path("/home/me/work"))) == (
        "python -m p --pairs PAIRS --only a b --scale 0.5"
    )
