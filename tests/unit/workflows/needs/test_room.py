"""Whether outputs can be where they would be written, and whether there is room."""

from pathlib import Path
from typing import NamedTuple

import pytest

from lbm_lora import bundled
from lbm_lora.configs.compress import CompressConfig
from lbm_lora.configs.fuse import FuseConfig
from lbm_lora.machine import resources
from lbm_lora.workflows.needs import room
from lbm_lora.workflows.needs.inputs import inputs_of
from lbm_lora.workflows.needs.outputs import Output, outputs_of
from lbm_lora.workflows.needs.room import output_checks

MODEL = bundled.TUNED / "model.safetensors"


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def shown(config: object, outputs: list[Output]) -> list[tuple[str, str, str]]:
    checks = output_checks(config, outputs, inputs_of(config))
    return [(one.level, str(one.found), str(one.remedy)) for one in checks]


def test_an_output_that_is_an_input_is_a_problem_and_one_that_exists_a_note(tmp_path: Path) -> None:
    link = tmp_path / "link.safetensors"
    link.symlink_to(MODEL)
    config = FuseConfig(base_model_path=MODEL, lora_path=(), save_to=link)
    note, problem, _ = shown(config, outputs_of("fuse", config, inputs_of(config)))
    assert note[0] == "note"
    assert note[1].endswith("exists")
    assert problem[0] == "problem"
    assert "an input of this command" in problem[2]


def test_a_state_that_exists_is_resumed_from(tmp_path: Path) -> None:
    state = tmp_path / "x.refine.pt"
    state.write_bytes(b"# made by lbm-lora: refinement")
    note, *_ = shown(None, [Output(path=state, nbytes=None, is_temporary=True)])
    assert note[0] == "note"
    assert "the command resumes from it" in note[2]


def test_too_little_room_is_a_problem_with_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources.shutil, "disk_usage", lambda path: Usage(0, 0, 3_000_000_000))
    outputs = [Output(path=tmp_path / name, nbytes=2_000_000_000) for name in ("a", "b")]
    *_, disk = shown(None, [*outputs, Output(path=tmp_path / "c", nbytes=None)])
    assert disk[:2] == (
        "problem",
        f"needs about 4.0 GB, and 1 output of unknown size; 3.0 GB free at {tmp_path}",
    )
    *_, fits = shown(None, outputs[:1])
    assert fits[0] == "ok"


def test_a_place_that_cannot_be_written_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    folder = Output(path=tmp_path / "file", nbytes=None, is_folder=True)
    assert shown(None, [folder])[0] == ("problem", f"{tmp_path / 'file'} is a file", "Give the path of a folder.")
    monkeypatch.setattr(room, "is_writable", lambda folder: False)
    level, found, _ = shown(None, [Output(path=tmp_path / "x" / "y.png", nbytes=1)])[0]
    assert (level, found) == ("problem", f"{tmp_path / 'x' / 'y.png'}: {tmp_path} cannot be written")


def test_compress_needs_a_folder_for_its_report_and_another_than_the_models(tmp_path: Path) -> None:
    (tmp_path / "report").touch()
    for output, message in ((tmp_path, "is a file"), (bundled.TUNED, "a second checkpoint in")):
        config = CompressConfig(tuned=bundled.TUNED, output=output)
        found = shown(config, outputs_of("compress", config, inputs_of(config)))
        assert any(level == "problem" and message in f"{text} {remedy}" for level, text, remedy in found), found
