"""What a command reads and writes, by whatever road: nothing that is not ours is replaced."""

import json
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lbm_lora.atomic import write_text
from lbm_lora.errors import OutputError
from lbm_lora.file_plan import FilePlan
from lbm_lora.late_files import check_late, notes_of_one_call
from lbm_lora.ownership import BASE, MARK, MARK_KEY, MARK_LINE, REPORT_PAGE, is_lora, of_kind
from lbm_lora.private_folder import NOTE, NOTE_TEXT

OURS = of_kind(MARK_LINE, REPORT_PAGE, '"lbm_lora_format":"')


def refused(plan: FilePlan, *, overwrite: bool = False) -> str:
    with pytest.raises(OutputError) as caught:
        plan.check(overwrite=overwrite)
    return str(caught.value)


def file(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def by_path(one: Path) -> Path:
    return one


def by_spelling(one: Path) -> Path:
    return one.parent / ".." / one.parent.name / one.name


def by_symlink(one: Path) -> Path:
    one.with_name("link").symlink_to(one)
    return one.with_name("link")


def by_hard_link(one: Path) -> Path:
    os.link(one, one.with_name("hard"))
    return one.with_name("hard")


def by_linked_folder(one: Path) -> Path:
    folder = one.parent.with_name("other")
    folder.symlink_to(one.parent)
    return folder / one.name


@pytest.mark.parametrize("road", [by_path, by_spelling, by_symlink, by_hard_link, by_linked_folder])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_never_an_output(tmp_path: Path, road: Callable[[Path], Path], overwrite: bool) -> None:
    source = file(tmp_path / "in" / "base.safetensors", f"{MARK}: even a file of ours")
    plan = FilePlan()
    plan.reads(source)
    plan.writes(road(source), ours=OURS)
    assert "an input of this command" in refused(plan, overwrite=overwrite)


def test_the_twin_of_a_base_and_pefts_configuration_are_inputs(tmp_path: Path) -> None:
    file(tmp_path / "m.pth")
    file(tmp_path / "m.safetensors", f'{{"__metadata__":{{"{MARK_KEY}":"{BASE}"}}}}')
    save_file({"base_model.model.a.lora_A.weight": torch.zeros(1)}, tmp_path / "v1.safetensors")
    file(tmp_path / "adapter_config.json", "{}")
    for given, written in (("m.pth", "m.safetensors"), ("v1.safetensors", "adapter_config.json")):
        plan = FilePlan()
        plan.reads(tmp_path / given)
        plan.writes(tmp_path / written, ours=OURS)
        assert "an input of this command" in refused(plan, overwrite=True)


def test_an_input_in_what_a_killed_command_has_left(tmp_path: Path) -> None:
    left = file(tmp_path / ".r.safetensors.0.part" / "r.safetensors")
    file(left.with_name(NOTE), NOTE_TEXT.decode())
    (tmp_path / "rescued").symlink_to(left.parent)
    for given in (left, tmp_path / "rescued" / "r.safetensors", file(left.with_name(".r.safetensors"))):
        plan = FilePlan()
        plan.reads(given)
        assert (
            refused(plan)
            == f"{given} is in a temporary folder of an unfinished command, which may be removed. Move it."
        )
        plan = FilePlan()
        plan.writes(given.with_name("new"), ours=OURS)
        assert "would be in a temporary folder of an unfinished command, which may be removed." in refused(plan)


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("", "unet/model.safetensors"),
        ("unet", "unet/model.safetensors"),
        ("model.safetensors.index.json", "model-2.safetensors"),
        ("base.safetensors", "base.ckpt"),
        ("base.ckpt", "base.safetensors"),
        ("base.safetensors", "config.yaml"),
        ("model.safetensors.index.json", "config.yaml"),
        ("other", "other/lbm.yaml"),
        ("other/base.safetensors", "other/lbm.yaml"),
    ],
)
def test_files_behind_an_input_are_inputs(tmp_path: Path, given: str, written: str) -> None:
    names = ("unet/model.safetensors", "model-2.safetensors", "base.ckpt", "base.safetensors", "config.yaml")
    for name in (*names, "other/base.safetensors", "other/lbm.yaml", "other/x_lora_config.yaml"):
        file(tmp_path / name)
    file(tmp_path / "model.safetensors.index.json", json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    plan = FilePlan()
    plan.reads(tmp_path / given)
    plan.writes(tmp_path / written, "the report", ours=OURS)
    assert refused(plan, overwrite=True).startswith(f"the report {tmp_path / written} is")


def test_two_outputs_of_one_path(tmp_path: Path) -> None:
    plan = FilePlan()
    plan.writes(tmp_path / "a.png", "the image", ours=OURS)
    plan.writes(tmp_path / "x" / ".." / "a.png", ours=OURS)
    assert refused(plan).endswith("a.png would be written twice: it is also the image.")


def test_a_file_of_somebody_else_stays(tmp_path: Path) -> None:
    plan = FilePlan()
    plan.writes(file(tmp_path / "config.yaml", f"# a LoRA {MARK}, with rank 4\nmy: notes\n"), ours=OURS)
    assert refused(plan) == (
        f"{tmp_path / 'config.yaml'} exists, and lbm-lora did not write it. Choose another path, or use overwrite to "
        "replace it."
    )
    plan.check(overwrite=True)


def test_our_own_files_are_replaced(tmp_path: Path) -> None:
    plan = FilePlan()
    plan.writes(
        file(tmp_path / "report.html", f'<head>\n <meta name="generator" content="{MARK}">\r\n</head>'), ours=OURS
    )
    plan.writes(file(tmp_path / "config.yaml", f"{MARK_LINE}rank: 4\n"), ours=OURS)
    save_file({"a": torch.ones(2)}, tmp_path / "lora.safetensors", {"lbm_lora_format": "1"})
    plan.writes(tmp_path / "lora.safetensors", ours=OURS)
    plan.writes(tmp_path / "new.safetensors", ours=OURS)
    plan.check()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_link_is_not_replaced_by_a_file(tmp_path: Path, overwrite: bool) -> None:
    link = tmp_path / "current"
    link.symlink_to(file(tmp_path / "v3", MARK_LINE))
    plan = FilePlan()
    plan.writes(link, "the report", ours=OURS)
    assert refused(plan, overwrite=overwrite) == (
        f"the report {link} is a link to {tmp_path / 'v3'}. Give that path, or remove the link."
    )


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_write_protected_file_stays(tmp_path: Path, overwrite: bool) -> None:
    path = file(tmp_path / "report.html", MARK_LINE)
    path.chmod(0o444)
    plan = FilePlan()
    plan.writes(path, ours=OURS)
    assert refused(plan, overwrite=overwrite) == (
        f"{path} is write-protected. Choose another path, or make it writable."
    )


def test_a_link_to_a_write_protected_file_is_no_second_name_of_it(tmp_path: Path) -> None:
    path = file(tmp_path / "v2", MARK_LINE)
    (tmp_path / "latest").symlink_to("v2")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "v2").hardlink_to(path)
    path.chmod(0o444)
    plan = FilePlan()
    plan.writes(path, ours=OURS)
    assert "is write-protected" in refused(plan)


def test_a_finished_file_that_may_stay_is_no_obstacle(tmp_path: Path) -> None:
    protected, link = file(tmp_path / "a", MARK_LINE), tmp_path / "b"
    protected.chmod(0o444)
    link.symlink_to(file(tmp_path / "elsewhere", MARK_LINE))
    plan = FilePlan()
    for path in (protected, link):
        plan.writes(path, ours=OURS, may_stay=True)
    plan.check()
    for path in (protected, link):
        with pytest.raises(OutputError, match=r"(write-protected|is a link to .*)\. It was kept"):
            write_text(path, "new")
    plan.writes(file(tmp_path / "theirs"), ours=OURS, may_stay=True)
    assert "theirs exists, and lbm-lora did not write it" in refused(plan)


def test_not_all_names_of_a_protected_file_are_replaced(tmp_path: Path) -> None:
    first, second = file(tmp_path / "a", MARK_LINE), tmp_path / "b"
    second.hardlink_to(first)
    first.chmod(0o444)
    plan = FilePlan()
    for path in (first, second):
        plan.writes(path, ours=of_kind(MARK_LINE))
    with pytest.raises(OutputError, match=r"a is write-protected\. Choose another path"):
        plan.check(overwrite=True)


def test_a_folder_that_is_made_anew_is_another_one(tmp_path: Path) -> None:
    """Also where the disk gives it the inode of the one that was removed."""
    folder = tmp_path / "out"
    folder.mkdir()
    plan = FilePlan()
    plan.writes(folder / "x", ours=OURS)
    with notes_of_one_call():
        plan.check()
        folder.rmdir()
        file(folder / "x", MARK_LINE)
        with pytest.raises(OutputError, match=r"x appeared while this command ran"):
            check_late(folder / "x")


def test_all_files_that_overwrite_would_replace_are_named(tmp_path: Path) -> None:
    plan = FilePlan()
    for name, what in {"a": "", "b": "", "c": "the sidecar", "d": "the report"}.items():
        plan.writes(tmp_path / name, what, ours=OURS)
    for name in ("a", "c", "d"):
        file(tmp_path / name)
    message = refused(plan)
    assert message.startswith(f"{tmp_path / 'a'} exists, and lbm-lora did not write it.")
    assert message.endswith(f"to replace it, and also the sidecar {tmp_path / 'c'}, the report {tmp_path / 'd'}.")


def test_overwrite_is_for_files_that_were_there_when_the_call_began(tmp_path: Path) -> None:
    """Inputs may be read for a long time before the plan is made."""
    plan = FilePlan()
    plan.writes(tmp_path / "theirs", "the report", ours=OURS)
    file(tmp_path / "theirs")
    file(tmp_path / "other", "of another size")
    with notes_of_one_call():
        plan.check(overwrite=True)
        time.sleep(0.05)  # the clock of files is coarse
        (tmp_path / "other").replace(tmp_path / "theirs")
        with notes_of_one_call(), pytest.raises(OutputError, match=r"^the report .*theirs appeared while this command"):
            plan.check(overwrite=True)
    plan.check(overwrite=True)


@pytest.mark.parametrize(("is_gone", "shift", "stays"), [(True, 100, True), (False, 0, True), (False, 100, False)])
def test_an_input_that_was_moved_to_another_disk(tmp_path: Path, is_gone: bool, shift: int, stays: bool) -> None:
    """It has another inode there, and maybe another time. A copy of which the original is still there is lost."""
    given, output = file(tmp_path / "a", MARK_LINE), tmp_path / "b"
    plan = FilePlan()
    plan.reads(given)
    plan.writes(output, ours=of_kind(MARK_LINE))
    with notes_of_one_call():
        plan.check()
        changed = given.stat().st_mtime_ns + shift
        file(output, MARK_LINE)
        os.utime(output, ns=(changed, changed))
        if is_gone:
            given.unlink()
        with pytest.raises(OutputError, match=r"b appeared while this command ran") if stays else nullcontext():
            check_late(output)


def test_a_file_that_the_call_has_written_is_no_input(tmp_path: Path) -> None:
    """A training's save may have the size of the LoRA that it began with, or the inode of an image that was removed."""
    given, output = file(tmp_path / "a", MARK_LINE), tmp_path / "b"
    plan = FilePlan()
    plan.reads(given)
    plan.writes(output, ours=OURS)
    with notes_of_one_call():
        plan.check()
        write_text(output, MARK_LINE)
        given.unlink()
        write_text(output, MARK_LINE)
        found = output.stat()
        plan.inputs[found.st_dev, found.st_ino] = given
        write_text(output, f"{MARK_LINE}again")
    assert output.read_text() == f"{MARK_LINE}again"


@pytest.mark.parametrize("given", ["out", "out/x"])
def test_a_folder_that_is_exchanged_while_inputs_are_read(tmp_path: Path, given: str) -> None:
    out = tmp_path / "out"
    file(out / "x", MARK_LINE)
    with notes_of_one_call([tmp_path / given, "none", 5, "\0"]):
        out.rename(tmp_path / "away")
        file(out / "x", MARK_LINE)
        plan = FilePlan()
        plan.writes(out / "x", ours=OURS)
        assert refused(plan) == (
            f"{out} was replaced by another folder after the command began, which was kept. Run the command again."
        )
    plan.check()


@pytest.mark.parametrize("is_planned", [False, True])
def test_an_input_that_comes_to_an_outputs_path_while_the_command_begins(tmp_path: Path, is_planned: bool) -> None:
    """Libraries are loaded, and LoRAs come from the hub, before the plan is made: names may be exchanged meanwhile."""
    given, output = file(tmp_path / "a", MARK_LINE), file(tmp_path / "b", MARK_LINE)
    plan = FilePlan()
    plan.writes(output, ours=OURS)
    with notes_of_one_call([(given,), output]):
        given.rename(tmp_path / "c")
        output.rename(given)
        if is_planned:
            plan.reads(given)
            plan.check()
        (tmp_path / "c").rename(output)
        if is_planned:
            with pytest.raises(OutputError, match=r"b appeared while this command ran"):
                check_late(output)
        else:
            plan.reads(given)
            assert refused(plan).startswith(f"{output} is an input of this command, or was one when it began.")
    plan.check()


def test_the_current_folder_may_be_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    plan = FilePlan()
    plan.writes(Path("x"), ours=OURS)
    plan.writes_in(Path("run"), ours=OURS)
    with notes_of_one_call():
        plan.check()
        (tmp_path / "project").rename(tmp_path / "renamed")
        for path in (Path("x"), Path("run/y")):
            file(path)
            with pytest.raises(OutputError, match=rf"{path} appeared while this command ran"):
                check_late(path)


def test_a_protected_file_with_a_second_name_elsewhere_stays(tmp_path: Path) -> None:
    """As in a snapshot of hard links: the path would lose its contents."""
    protected = file(tmp_path / "x", MARK_LINE)
    protected.chmod(0o444)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "x").hardlink_to(protected)
    plan = FilePlan()
    plan.writes(protected, ours=OURS)
    assert "write-protected" in refused(plan)


def test_a_second_name_of_a_protected_file_is_replaced(tmp_path: Path) -> None:
    """As `last.safetensors` is of the file of the last step: nothing is lost."""
    protected = file(tmp_path / "step", MARK_LINE)
    protected.chmod(0o444)
    (tmp_path / "last").hardlink_to(protected)
    plan = FilePlan()
    plan.writes(tmp_path / "last", ours=OURS)
    plan.check()
    write_text(tmp_path / "last", "new")
    assert protected.read_text() == MARK_LINE


def test_a_file_of_no_bytes_stays(tmp_path: Path) -> None:
    """Somebody may have just begun to write it."""
    plan = FilePlan()
    plan.writes(file(tmp_path / "report.html", ""), ours=OURS)
    assert "exists, and lbm-lora did not write it" in refused(plan)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    plan = FilePlan()
    plan.writes(tmp_path, ours=OURS)
    assert refused(plan, overwrite=True) == f"{tmp_path} is a folder. Give the path of a file."


def test_a_later_step_may_read_what_an_earlier_one_writes(tmp_path: Path) -> None:
    base, tuned = file(tmp_path / "base.ckpt", MARK_LINE), file(tmp_path / "tuned.ckpt", MARK_LINE)
    twin = file(tmp_path / "base.safetensors", MARK_LINE)
    first, later = FilePlan(), FilePlan()
    first.writes(base, ours=OURS)
    later.reads(base, tuned)
    later.writes(tmp_path / "lora.safetensors", ours=OURS)
    first.writes(twin, ours=OURS)
    first.then(later, made=[base])
    first.check()
    first.writes(tuned, ours=OURS)
    assert "tuned.ckpt is an input of this command" in refused(first)


@pytest.mark.parametrize(
    ("given", "also"),
    [
        ("model", "model/model.safetensors.index.json"),
        ("peft/adapter_model.safetensors", "peft/adapter_config.json"),
    ],
)
def test_files_that_are_read_along_are_inputs(tmp_path: Path, given: str, also: str) -> None:
    plan = FilePlan()
    file(tmp_path / "model" / "model-00001-of-00001.safetensors")
    file(tmp_path / "peft" / "adapter_model.safetensors")
    output = file(tmp_path / also)
    plan.reads(tmp_path / given)
    plan.writes(output, ours=OURS)
    assert "an input of this command" in refused(plan, overwrite=True)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 1}', '{"weight_map": {"a": [1]}}'])
def test_an_index_that_cannot_be_read_is_an_input_all_the_same(tmp_path: Path, text: str) -> None:
    plan = FilePlan()
    plan.reads(file(tmp_path / "model.safetensors.index.json", text))
    assert list(plan.inputs.values()) == [tmp_path / "model.safetensors.index.json"]


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "out.safetensors"
    os.mkfifo(path)
    plan = FilePlan()
    plan.writes(path, ours=OURS)
    assert f"{path} exists, and lbm-lora did not write it." in refused(plan)


def test_paths_that_no_system_takes(tmp_path: Path) -> None:
    plan = FilePlan()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    plan.reads(tmp_path / "a\0b", tmp_path / "loop", tmp_path / ("x" * 300))
    assert not plan.inputs
    plan.writes(tmp_path / "loop", ours=OURS)
    assert f"{tmp_path / 'loop'} is a link to {tmp_path / 'loop'}, where no file is." in refused(plan)


def test_an_output_is_in_a_folder_that_can_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = file(tmp_path / "report")
    plan = FilePlan()
    plan.writes(report / "new" / "report.html", "the report", ours=OURS)
    assert refused(plan) == (
        f"the report {report}/new/report.html would be in {report}, which is a file. Choose another path."
    )
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    plan = FilePlan()
    plan.writes(tmp_path / "new" / "report.html", ours=OURS)
    assert refused(plan) == (
        f"{tmp_path}/new/report.html cannot be written: {tmp_path} is read-only for this user. Choose another path."
    )


def test_an_output_is_not_the_folder_of_another(tmp_path: Path) -> None:
    plan = FilePlan()
    plan.writes(tmp_path / "report" / "report.html", "the report", ours=OURS)
    plan.writes(tmp_path / "report", ours=OURS)
    assert refused(plan) == (
        f"the report {tmp_path}/report/report.html would be in {tmp_path}/report, which is a file. Choose another path."
    )


@pytest.mark.parametrize(
    ("held", "written", "is_ambiguous"),
    [
        (["model.safetensors"], "base.safetensors", True),
        (["model.ckpt"], "base.safetensors", True),
        (["base.safetensors", "base.ckpt"], "lora.safetensors", True),
        (["model.safetensors"], "lora/lora.safetensors", False),
        (["model.safetensors"], "report.html", False),
        (["model.safetensors", "ema.ckpt"], "lora.safetensors", True),
        (["adapter_model.safetensors"], "lora.safetensors", True),
        (["lora.safetensors", "pytorch_lora_weights.safetensors"], "other.safetensors", True),
        (["a.safetensors", "b.safetensors"], "lora.safetensors", False),
        (["a-1.safetensors", "model.safetensors.index.json"], "lora.safetensors", False),
        ([], "lora.safetensors", False),
    ],
)
def test_a_folder_that_is_read_for_its_one_checkpoint_gets_no_second(
    tmp_path: Path, held: list[str], written: str, is_ambiguous: bool
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in held:
        file(folder / name)
    plan = FilePlan()
    plan.reads(folder)
    plan.writes(tmp_path / "model" / ".." / "model" / written, ours=OURS)
    if is_ambiguous:
        assert f"would be a second checkpoint in {folder}, an input of this command." in refused(plan, overwrite=True)
    else:
        plan.check()


def test_a_name_that_is_too_long_is_refused_at_once(tmp_path: Path) -> None:
    for path in (tmp_path / ("x" * 256), tmp_path / ("y" * 256) / "a.png"):
        plan = FilePlan()
        plan.writes(path, "the report", ours=OURS)
        assert refused(plan) == (
            f"the report {path} cannot be written: its name has 256 bytes, the disk allows 255. Choose a shorter one."
        )
    plan = FilePlan()
    plan.writes(tmp_path / ("x" * 255), ours=OURS)
    plan.check()


def test_another_kind_of_our_own_files_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text('{"__metadata__":{"lbm_lora_statistics":"2"}}')
    plan = FilePlan()
    plan.writes(path, ours=is_lora)
    with pytest.raises(OutputError, match=r"exists, and it is another kind of file\. Choose another path"):
        plan.check()
    plan.check(overwrite=True)


def test_an_output_named_as_the_note_of_private_folders(tmp_path: Path) -> None:
    plan = FilePlan()
    plan.writes(tmp_path / "LBM-LoRA.txt", ours=OURS)
    assert refused(plan).endswith("LBM-LoRA.txt has a name that temporary folders need. Choose another one.")
