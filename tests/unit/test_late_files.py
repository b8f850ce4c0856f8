"""Files that appear at an output's path while a command runs."""

import os
import shutil
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from lbm_lora.atomic import atomic_folder, write_text
from lbm_lora.call_start import call_start
from lbm_lora.configs.output_options import OutputOptions
from lbm_lora.configs.train import TrainRunConfig
from lbm_lora.errors import OutputError
from lbm_lora.file_plan import FilePlan
from lbm_lora.late_files import check_late, expect, given_in, notes_of_one_call, one_call, settle
from lbm_lora.ownership import MARK_LINE, of_kind

THEIRS = "somebody else's"


def test_a_file_of_somebody_else_that_appears_later_stays(tmp_path: Path) -> None:
    output = tmp_path / "out.txt"
    plan = FilePlan()
    plan.writes(output, ours=of_kind(MARK_LINE))
    plan.check()
    output.write_text(THEIRS)
    with pytest.raises(OutputError, match="appeared while this command ran"):
        write_text(output, "ours")
    assert output.read_text() == THEIRS
    assert list(tmp_path.iterdir()) == [output]
    plan.check(overwrite=True)
    write_text(output, "ours")
    assert output.read_text() == "ours"


def test_our_own_file_that_appears_later_is_replaced(tmp_path: Path) -> None:
    plan = FilePlan()
    plan.writes(tmp_path / "out.txt", ours=of_kind(MARK_LINE))
    plan.check()
    (tmp_path / "out.txt").write_text(MARK_LINE)
    write_text(tmp_path / "out.txt", "ours")
    assert (tmp_path / "out.txt").read_text() == "ours"


def test_a_folder_of_outputs_spares_what_appears_later(tmp_path: Path) -> None:
    plan = FilePlan()
    for name in ("a", "b"):
        plan.writes(tmp_path / name, ours=of_kind(MARK_LINE))
    plan.check()

    def write() -> None:
        with atomic_folder(tmp_path, overwrite=True) as folder:
            for name in ("a", "b"):
                (folder / name).write_text("ours")
            (tmp_path / "b").write_text(THEIRS)

    with pytest.raises(OutputError, match="appeared"):
        write()
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "b").read_text() == THEIRS


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_for_files_whose_names_are_not_known_yet(tmp_path: Path, overwrite: bool) -> None:
    plan = FilePlan()
    plan.writes_in(tmp_path / "run", ours=of_kind(MARK_LINE))
    plan.check(overwrite=overwrite)
    for name in ("step-1", "step-2"):
        write_text(tmp_path / "run" / name, MARK_LINE)
        write_text(tmp_path / "run" / name, f"{MARK_LINE}again")
    (tmp_path / "run" / "step-3").write_text(THEIRS)
    with pytest.raises(OutputError, match="step-3 appeared while this command ran"):
        write_text(tmp_path / "run" / "step-3", "ours")


def test_a_link_on_the_way_that_is_changed_meanwhile(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "b" / "out.txt").write_text(THEIRS)
    link = tmp_path / "link"
    link.symlink_to("a")
    plan = FilePlan()
    plan.writes(link / "out.txt", ours=of_kind(MARK_LINE))
    plan.check()
    link.unlink()
    link.symlink_to("b")
    with pytest.raises(OutputError, match="appeared while this command ran"):
        write_text(link / "out.txt", "ours")
    assert (tmp_path / "b" / "out.txt").read_text() == THEIRS


def test_a_file_that_appears_between_two_saves_stays(tmp_path: Path) -> None:
    output = tmp_path / "out.txt"
    plan = FilePlan()
    plan.writes(output, ours=of_kind(MARK_LINE))
    plan.check()
    for _ in range(2):
        write_text(output, f"{MARK_LINE}ours")
    output.write_text(THEIRS)
    with pytest.raises(OutputError, match="appeared while this command ran"):
        write_text(output, "ours")
    assert output.read_text() == THEIRS


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_whose_folder_is_moved_to_the_outputs_stays(tmp_path: Path, overwrite: bool) -> None:
    given, output = tmp_path / "in" / "a.txt", tmp_path / "out" / "a.txt"
    given.parent.mkdir()
    given.write_text(MARK_LINE)
    plan = FilePlan()
    plan.reads(given)
    plan.writes(output, ours=of_kind(MARK_LINE))
    plan.check(overwrite=overwrite)
    write_text(output, f"{MARK_LINE}first")
    write_text(output, f"{MARK_LINE}second")
    output.parent.rename(tmp_path / "old")
    given.parent.rename(output.parent)
    with pytest.raises(OutputError, match=r"a\.txt appeared while this command ran"):
        write_text(output, f"{MARK_LINE}third")
    assert output.read_text() == MARK_LINE


def test_overwrite_is_for_what_was_there_at_the_start(tmp_path: Path) -> None:
    output, other = tmp_path / "a.txt", tmp_path / "b.txt"
    output.write_text(THEIRS)
    plan = FilePlan()
    for path in (output, other):
        plan.writes(path, ours=of_kind(MARK_LINE))
    plan.check(overwrite=True)
    write_text(output, MARK_LINE)
    write_text(output, f"{MARK_LINE}again")
    output.write_text(THEIRS)
    other.write_text(THEIRS)
    for path in (output, other):
        with pytest.raises(OutputError, match="appeared while this command ran"):
            write_text(path, "ours")


def test_a_call_with_a_plan_replaces_no_file_that_it_has_not_planned(tmp_path: Path) -> None:
    """An output may get another name by then: it depends on whether a LoRA is a folder, for example."""
    planned, theirs, new = (tmp_path / name for name in ("planned", "theirs", "new"))
    planned.write_text(MARK_LINE)
    theirs.write_text(MARK_LINE)
    plan = FilePlan()
    plan.writes(planned, ours=of_kind(MARK_LINE))
    with notes_of_one_call():
        plan.check()
        for path in (planned, new):
            for text in ("1", "2"):
                write_text(path, f"{MARK_LINE}{text}")
        with pytest.raises(OutputError, match=r"theirs appeared while this command ran"):
            write_text(theirs, "ours")
        theirs.replace(new)
        with pytest.raises(OutputError, match=r"new appeared while this command ran"):
            write_text(new, "ours")
    assert new.read_text() == MARK_LINE


def test_what_several_steps_of_one_call_have_noted_holds_together(tmp_path: Path) -> None:
    given, output = tmp_path / "in.txt", tmp_path / "out.txt"
    given.write_text(MARK_LINE)
    with notes_of_one_call():
        for inputs in ([given], []):
            plan = FilePlan()
            plan.reads(*inputs)
            plan.writes(output, ours=of_kind(MARK_LINE))
            plan.check()
        given.rename(output)
        with notes_of_one_call(), pytest.raises(OutputError, match=r"out\.txt appeared while this command ran"):
            write_text(output, "ours")
    write_text(output, "ours")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_a_folder_that_was_moved_to_the_outputs_stays(tmp_path: Path, overwrite: bool) -> None:
    output, other = tmp_path / "out" / "a.txt", tmp_path / "other"
    output.parent.mkdir()
    other.mkdir()
    (other / "a.txt").write_text(MARK_LINE)
    plan = FilePlan()
    plan.writes(output, ours=of_kind(MARK_LINE))
    plan.check(overwrite=overwrite)
    output.parent.rename(tmp_path / "old")
    other.rename(output.parent)
    with pytest.raises(OutputError, match=r"a\.txt appeared while this command ran"):
        write_text(output, "new")
    assert output.read_text() == MARK_LINE
    output.unlink()
    write_text(output, "new")  # nothing is lost


@pytest.fixture
def default_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A path that no value of the call names; another file for it is in the folder `old`, and was there before."""
    monkeypatch.chdir(tmp_path)
    for name in ("new", "old"):
        (tmp_path / name / "out").mkdir(parents=True)
        (tmp_path / name / "out" / "a.txt").write_text(MARK_LINE)
    return Path("new/out/a.txt")


@contextmanager
def _later_call() -> Generator[None]:
    """A call that begins well after the last change, and before the next one: the clock of files is coarse."""
    time.sleep(0.05)
    with notes_of_one_call():
        time.sleep(0.05)
        yield


def _planned(output: Path, *, overwrite: bool = False) -> None:
    plan = FilePlan()
    plan.writes(output, ours=of_kind(MARK_LINE))
    plan.check(overwrite=overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("moved", ["out", "."])
def test_a_folder_that_is_exchanged_before_the_first_look_at_it(
    default_output: Path, moved: str, overwrite: bool
) -> None:
    """Nothing is known of it then but that it, or one above it, has changed since the call began."""
    with _later_call():
        Path("new", moved).rename("kept")
        Path("old", moved).rename(Path("new", moved))
        with pytest.raises(OutputError, match=r"new/out was changed, or moved there, since .* new/out/a\.txt was kept"):
            _planned(default_output, overwrite=overwrite)
    with _later_call():
        _planned(default_output, overwrite=overwrite)
        write_text(default_output, "ours")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("looked", [False, True])
def test_a_folder_that_is_moved_to_where_none_was(default_output: Path, looked: bool, overwrite: bool) -> None:
    shutil.rmtree("new")
    with _later_call():
        if looked:
            _planned(default_output, overwrite=overwrite)
        Path("old").rename("new")
        with pytest.raises(OutputError, match=r"a\.txt (appeared|was kept)"):
            _planned(default_output, overwrite=overwrite)
        if looked:
            with pytest.raises(OutputError, match=r"a\.txt appeared"):
                write_text(default_output, "ours")
        write_text(Path("new/out/b.txt"), "ours")


def test_a_folder_whose_time_is_in_the_future_is_moved_to_where_none_was(default_output: Path) -> None:
    """As one from an archive that another time zone has made."""
    shutil.rmtree("new")
    tomorrow = time.time() + 86_400
    os.utime("old/out", (tomorrow, tomorrow))
    with _later_call():
        Path("new").mkdir()
        Path("old/out").rename("new/out")
        with pytest.raises(OutputError, match=r"new/out was changed, or moved there, since .* new/out/a\.txt was kept"):
            _planned(default_output)


def test_a_file_that_an_earlier_step_has_looked_at_may_get_another_time(tmp_path: Path) -> None:
    """A backup by hard links, or `chmod`, changes the time that tells whether a file has come since."""
    output = tmp_path / "a.txt"
    output.write_text(THEIRS)
    plan = FilePlan()
    plan.writes(output, ours=of_kind(MARK_LINE))
    with _later_call():
        plan.check(overwrite=True)
        output.chmod(0o640)
        with notes_of_one_call():
            plan.check(overwrite=True)
        output.write_text(f"{THEIRS} and more")
        with notes_of_one_call(), pytest.raises(OutputError, match=r"a\.txt appeared"):
            plan.check(overwrite=True)


def test_folders_of_a_training_are_known_from_its_command_line() -> None:
    keys = (
        ("save_ckpt_path", "runs/a"),
        ("seed", "3"),
        ("lora_weights_path", '"my.safetensors"'),
        ("train_shards", "[a]"),
    )
    config = TrainRunConfig(path_config=Path("t.yaml"), overrides=keys)
    given = given_in(config)
    assert all(value in given for value in (Path("t.yaml"), "runs/a", "my.safetensors", ["a"]))


def test_a_configuration_that_is_given_by_name(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(THEIRS)

    @one_call
    def run(config: TrainRunConfig) -> bool:
        time.sleep(0.05)  # the clock of files is coarse
        config.path_config.rename(tmp_path / "moved")
        return call_start().is_input(tmp_path / "moved")

    assert run(config=TrainRunConfig(path_config=path))


def test_values_in_lists_and_mappings_are_known_at_once(tmp_path: Path) -> None:
    """As those of `merge`, and of a training's keys in Python."""
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_text(path.name)
    with notes_of_one_call([[paths[0]], {"base_model_path": str(paths[1]), "data": {"train_shards": [paths[2]]}}]):
        time.sleep(0.05)  # the clock of files is coarse
        for path in paths:
            path.replace(tmp_path / "moved")
            assert call_start().is_input(tmp_path / "moved")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_link_to_a_folder_that_is_made_where_none_was(default_output: Path, overwrite: bool) -> None:
    shutil.rmtree("new")
    with _later_call():
        Path("new").symlink_to("old")
        with pytest.raises(OutputError, match=r"new/out was changed, or moved there, since .* new/out/a\.txt was kept"):
            _planned(default_output, overwrite=overwrite)
    with _later_call():
        _planned(default_output, overwrite=overwrite)
        write_text(default_output, "ours")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_moved_from_another_disk_to_where_none_was(default_output: Path, overwrite: bool) -> None:
    """It is copied then, with the times of its files."""
    shutil.rmtree("new")
    with _later_call():
        _planned(default_output, overwrite=overwrite)
        shutil.copytree("old", "new")
        with pytest.raises(OutputError, match=r"a\.txt appeared"):
            write_text(default_output, "ours")


def test_folders_that_others_write_to_are_no_moved_ones(default_output: Path) -> None:
    """The one above the outputs may be that of temporary files."""
    with _later_call():
        for name in ("new/x", "new/out/x"):
            Path(name).write_text(THEIRS)
        _planned(default_output)
        write_text(default_output, "ours")


@pytest.mark.parametrize("text", [THEIRS, MARK_LINE])
def test_a_file_that_comes_between_the_last_look_and_the_rename(
    default_output: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    default_output.unlink()
    link = os.link

    def appear(source: Path, target: Path, **options: bool) -> None:
        if not default_output.exists():
            default_output.write_text(text)
        link(source, target, **options)

    monkeypatch.setattr(os, "link", appear)
    refusal = nullcontext() if text == MARK_LINE else pytest.raises(OutputError, match=r"a\.txt appeared")
    with notes_of_one_call(), refusal:
        _planned(default_output)
        write_text(default_output, "ours")
    assert default_output.read_text() == ("ours" if text == MARK_LINE else text)


def test_a_folder_that_the_command_makes_is_its_own(default_output: Path) -> None:
    """Also if the disk's clock is behind."""
    shutil.rmtree("new")
    with _later_call():
        _planned(default_output)
        for _ in range(2):
            write_text(default_output, MARK_LINE)
            os.utime(default_output, (0, 0))
        default_output.parent.rename("kept")
        Path("old/out").rename("new/out")
        with pytest.raises(OutputError, match=r"a\.txt appeared"):
            write_text(default_output, "ours")


def test_a_current_folder_that_is_exchanged_before_the_first_look(default_output: Path, tmp_path: Path) -> None:
    """A relative path goes on leading to the folder in which the command was started; an absolute one does not."""
    other = tmp_path.with_name("other")
    shutil.copytree(tmp_path, other)
    with _later_call():
        tmp_path.rename(tmp_path.with_name("kept"))
        other.rename(tmp_path)
        with pytest.raises(OutputError, match=r"a\.txt was kept"):
            _planned(tmp_path / default_output)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_folder_above_that_of_a_link_is_exchanged(
    default_output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    """Also in a shell that has the number of a process."""
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.delenv("LBM_LORA_BEGAN", raising=False)
    (tmp_path / "disk").mkdir()
    Path("new").rename("disk/new")
    Path("old").rename("disk/old")
    (tmp_path / "out").symlink_to("disk/new/out")
    with _later_call():
        Path("disk/new").rename("disk/kept")
        Path("disk/old").rename("disk/new")
        with pytest.raises(OutputError, match=r"out/a\.txt was kept"):
            _planned(Path("out/a.txt"))


def test_what_the_first_process_writes_is_no_reason_for_others_to_stop(
    default_output: Path, handed_on: Callable[[], Callable[[], None]]
) -> None:
    with _later_call():
        started = handed_on()
        write_text(Path("new/out/b.txt"), MARK_LINE)
    started()
    with _later_call():
        _planned(default_output)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_a_folder_that_comes_before_another_process_looks(
    default_output: Path, handed_on: Callable[[], Callable[[], None]], named: bool, overwrite: bool
) -> None:
    """The other process pins what the call names when it begins itself, seconds later."""
    with _later_call():
        started = handed_on()
        shutil.rmtree("new")
        Path("new").symlink_to("old")
    started()
    with (
        notes_of_one_call([Path("new/out")] if named else []),
        pytest.raises(OutputError, match=r"new/out was changed, or moved there, since .* new/out/a\.txt was kept"),
    ):
        _planned(default_output, overwrite=overwrite)


@pytest.mark.parametrize("link", ["first", "second", "third"])
def test_a_link_in_a_chain_of_links_is_exchanged(default_output: Path, tmp_path: Path, link: str) -> None:
    for name, to in (("first", "second/out"), ("second", tmp_path / "third"), ("third", "new")):
        Path(name).symlink_to(to)
    with _later_call():
        Path(link).rename("kept")
        Path(link).symlink_to("old/out" if link == "first" else "old")
        with pytest.raises(OutputError, match=r"first was changed, or moved there, since .* first/a\.txt was kept"):
            _planned(Path("first/a.txt"))


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_that_is_moved_from_another_disk_stays(tmp_path: Path, overwrite: bool) -> None:
    """It is copied then, and removed where it was."""
    given, output = tmp_path / "in" / "a.txt", tmp_path / "a.txt"
    given.parent.mkdir()
    given.write_text(MARK_LINE)
    plan = FilePlan()
    plan.reads(given)
    plan.writes(output, ours=of_kind(MARK_LINE))
    plan.check(overwrite=overwrite)
    write_text(output, f"{MARK_LINE}as of another run")
    shutil.copy2(given, output)
    given.write_text("a new version of it")
    with pytest.raises(OutputError, match=r"a\.txt appeared while this command ran"):
        write_text(output, "new")
    assert output.read_text() == MARK_LINE


def test_a_dangling_link_that_appears_later_stays(tmp_path: Path) -> None:
    output = tmp_path / "out.txt"
    plan = FilePlan()
    plan.writes(output, ours=of_kind(MARK_LINE))
    plan.check()
    output.symlink_to("nothing")
    with pytest.raises(OutputError, match="appeared while this command ran"):
        check_late(output)


def test_notes_end_with_the_call_that_made_them(tmp_path: Path) -> None:
    """A later save from Python has no plan, and replaces the file that is there."""
    output = tmp_path / "out.txt"
    plan = FilePlan()
    plan.writes(output, ours=of_kind(MARK_LINE))
    with notes_of_one_call():
        plan.check()
        output.write_text(THEIRS)
        with pytest.raises(OutputError, match="appeared"):
            write_text(output, "ours")
    write_text(output, "ours")
    assert output.read_text() == "ours"


@pytest.mark.parametrize("before", [None, MARK_LINE])
def test_what_appears_after_a_file_was_settled_stays(tmp_path: Path, before: str | None) -> None:
    """A record that is written before its file makes any file at that path look like ours."""
    output = tmp_path / "out.tar"
    if before:
        output.write_text(before)
    settle(output)
    check_late(output)  # nobody has noted it
    expect(output, lambda _: True)
    settle(output)
    check_late(output)
    output.write_text(THEIRS)
    with pytest.raises(OutputError, match="appeared while this command ran"):
        check_late(output)


def test_the_values_of_a_configuration_and_of_one_in_it(tmp_path: Path) -> None:
    inner = OutputOptions(overwrite=True)
    assert given_in(SimpleNamespace(command="x", parsed=inner)) == ["x", inner, True]
    assert given_in(None) == []
