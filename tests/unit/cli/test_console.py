"""How commands end, and what goes to which stream."""

import errno
import io
import json
import logging
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from functools import cached_property
from pathlib import Path, PurePosixPath

import pytest
import torch
from pydantic import BaseModel

from lbm_lora import errors
from lbm_lora.cli.console import described, jsonable, session, warnings_as_lines
from lbm_lora.errors import ConfigError, LbmLoraError, Option, QualityError
from lbm_lora.fidelity.outputs import ImageScore, VariantScores
from lbm_lora.progress import LbmLoraWarning, warn
from lbm_lora.signals import Terminated


class Action(StrEnum):
    KEPT = "kept"


class Level(Enum):
    HIGH = 3


class Settings(BaseModel):
    width: int = 16
    name: str | None = None


@dataclass(frozen=True)
class Item:
    name: str
    error: float
    _hidden: int = 0

    @property
    def is_good(self) -> bool:
        return self.error < 0.05


@dataclass(frozen=True)
class Result:
    path: Path
    items: tuple[Item, ...]
    counts: Mapping[Action, int] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)

    @cached_property
    def worst(self) -> float:
        return max(item.error for item in self.items)


RESULT = Result(
    path=Path("out") / "lora.safetensors",
    items=(Item("a.weight", 0.01), Item("b.weight", math.inf)),
    counts={Action.KEPT: 2},
)


def test_a_command_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    with session() as console:
        console.progress.start(2, "reading")
        console.progress.note("the base is\nelsewhere")
        console.print_result("all is well", RESULT)
    assert console.exit_code == 0
    assert capsys.readouterr() == ("all is well\n", "note: the base is elsewhere\n")


def test_the_result_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    with session() as console:
        console.print_result("all is well", RESULT, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "path": "out/lora.safetensors",
        "items": [
            {"name": "a.weight", "error": 0.01, "is_good": True},
            {"name": "b.weight", "error": "inf", "is_good": False},
        ],
        "counts": {"kept": 2},
        "settings": {"width": 16, "name": None},
        "worst": "inf",
    }


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"b", "a"}, ["a", "b"]),
        (Level.HIGH, 3),
        (torch.bfloat16, "torch.bfloat16"),
        (torch.device("cpu"), "cpu"),
        (-math.inf, "-inf"),
        (True, True),
        ({1: (None,)}, {"1": [None]}),
        (PurePosixPath("a/b"), "a/b"),
    ],
)
def test_values_that_json_lacks(value: object, expected: object) -> None:
    assert jsonable(value) == expected


def test_values_of_a_report_have_the_names_of_its_json() -> None:
    scores = VariantScores(variant="base", denoiser=(), images=(ImageScore(steps=1, psnr=math.inf, ssim=1.0),))
    assert jsonable(scores) == {
        "variant": "base",
        "denoiser": [],
        "pictures": [
            {"steps": 1, "psnr": "inf", "ssim": 1.0, "lpips": None, "mask_psnr": None, "mask_ssim": None},
        ],
    }


@pytest.mark.parametrize(
    ("kind", "code"),
    [(errors.ConfigError, 2), (errors.HubError, 2), (errors.MissingExtraError, 2), (errors.QualityError, 1)],
)
def test_expected_errors_are_one_line(capsys: pytest.CaptureFixture[str], kind: type[LbmLoraError], code: int) -> None:
    with session() as console:
        console.progress.start(9, "reading")
        raise kind("--rank is 0:\n  a rank is\x1b[2J at least 1.")
    assert console.exit_code == code
    assert capsys.readouterr() == ("", "error: --rank is 0: a rank is\\x1b[2J at least 1.\n")


def test_long_lines_and_markup_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    message = "tensors [bold]a[/bold] :smile: 1280 " + "down_blocks.0.attentions.1.weight " * 20
    with session():
        raise ConfigError(message)
    assert capsys.readouterr().err == f"error: {message.strip()}\n"


def test_debug_shows_where_an_expected_error_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    with session(debug=True) as console:
        raise ConfigError("no such key.")
    err = capsys.readouterr().err
    assert console.exit_code == 2
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith("\nerror: no such key.\n")


@pytest.mark.parametrize("error", [ZeroDivisionError("division by zero"), LbmLoraError("never raised as such")])
def test_anything_else_is_a_defect_with_a_traceback(capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    with session() as console:
        raise error
    err = capsys.readouterr().err
    assert console.exit_code == 3
    assert "in test_anything_else_is_a_defect_with_a_traceback" in err
    report = "please report the lines above, with what `lbm-lora doctor` says"
    last = f"error: {type(error).__name__}: {error} (a defect of lbm-lora: {report})\n"
    assert err.endswith(last)


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "/x/y: No space left on device.", 2),
        (OSError(errno.EFBIG, "File too large", "/x/y"), "/x/y: File too large.", 2),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/x"), "/x: File name too long.", 2),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device.", 2),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied.", 2),
    ],
)
def test_what_the_machine_refuses_is_no_defect(error: OSError, line: str, code: int) -> None:
    assert described(error) == (line, code)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("could not create a primitive"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
)
def test_too_little_memory_is_no_defect_and_says_what_needs_less(error: Exception) -> None:
    line, code = described(error)
    assert code == 2
    assert line.startswith("Out of memory. If the command has them, these need less: --torch_dtype bf16")
    assert line.endswith(str(error))


def test_a_missing_file_that_nobody_expected_is_a_defect_unless_its_folder_was_removed() -> None:
    assert described(FileNotFoundError(errno.ENOENT, "No such file", "/x"))[1] == 3
    line = "/no/folder was removed while it was in use. Run the command again."
    assert described(FileNotFoundError(errno.ENOENT, "No such file", "/no/folder/x")) == (line, 2)


def test_a_missed_limit_comes_after_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    with session() as console:
        console.print_result("the report", None)
        console.fail(QualityError("The error is 0.2, above ", Option("fail_above"), " 0.1."))
    assert console.exit_code == 1
    assert capsys.readouterr() == ("the report\n", "error: The error is 0.2, above --fail_above 0.1.\n")


def test_an_interruption_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with session() as console:
        raise KeyboardInterrupt
    assert console.exit_code == 130
    assert capsys.readouterr().err == "error: interrupted.\n"


def test_exits_of_the_parser_pass() -> None:
    with pytest.raises(SystemExit) as caught, session():
        sys.exit(2)
    assert caught.value.code == 2


def test_warnings_and_log_records_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    library = logging.getLogger("a_library")
    own = io.StringIO()
    library.addHandler(logging.StreamHandler(own))  # as diffusers does
    library.propagate = False
    with session():
        warnings.filterwarnings("always")
        for _ in range(2):
            warnings.warn("the file does not say\nwhich base", stacklevel=1)
            library.warning("%d keys were not used", 3)
        library.info("nothing to see")
    library.warning("later")
    assert capsys.readouterr() == (
        "",
        "warning: the file does not say which base\nwarning: 3 keys were not used\n",
    )
    assert own.getvalue() == "later\n"


def test_our_own_warnings_are_always_shown() -> None:
    """Whatever the filters say: here pytest's, which would raise."""
    lines: list[str] = []
    with warnings_as_lines(lines.append):
        warnings.warn_explicit("no fingerprint", LbmLoraWarning, "fit.py", 1, module="lbm_lora.apply.checks")
        with pytest.raises(UserWarning):
            warnings.warn_explicit("from elsewhere", UserWarning, "x.py", 1, module="elsewhere")
    assert lines == ["no fingerprint"]
    with pytest.raises(UserWarning):
        warnings.warn("afterwards", stacklevel=1)


def run_python(code: str, **settings: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **settings}
    )


def test_a_reader_that_leaves_early_is_no_error() -> None:
    code = (
        "import sys\nfrom lbm_lora.cli.console import session\n"
        "with session() as console:\n    console.print_result('line\\n' * 1_000_000, None)\n"
        "sys.exit(console.exit_code)"
    )
    with run_python(code, PYTHONUNBUFFERED="") as process:  # unbuffered, Python drops what a pipe refuses
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"line\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_signs_that_the_stream_lacks_are_spelt_out_and_torch_is_not_loaded() -> None:
    code = (
        "import sys\nfrom lbm_lora.cli.console import session\n"
        "with session() as console:\n    console.print_result('\\u2713 done', None)\n"
        "sys.exit('torch' in sys.modules)"
    )
    with run_python(code, PYTHONIOENCODING="ascii", PYTHONUTF8="0") as process:
        out, err = process.communicate()
    assert (out.decode().strip(), err, process.returncode) == (r"\u2713 done", b"", 0)


def test_options_in_a_message_are_spelt_as_flags() -> None:
    error = ConfigError("names differ. To leave them out: ", Option("exclude"), ", ", Option("dense", is_off=True), ".")
    assert described(error) == ("names differ. To leave them out: --exclude, --no_dense.", 2)
    assert str(error) == "names differ. To leave them out: exclude, dense=False."


def test_options_in_a_warning_are_spelt_as_flags() -> None:
    lines: list[str] = []
    with warnings_as_lines(lines.append):
        warn("nothing fits: ", Option("allow_unmatched"), " goes on.")
    assert lines == ["nothing fits: --allow_unmatched goes on."]


@pytest.mark.parametrize(
    ("is_terminal", "environment", "expected"),
    [
        (True, {}, True),
        (True, {"CI": "false"}, True),
        (True, {"CI": "true"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {}, False),
        (False, {"FORCE_COLOR": "1"}, False),
    ],
)
def test_bars_are_for_terminals_that_somebody_looks_at(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, environment: dict[str, str], expected: bool
) -> None:
    for name in ("CI", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"TERM": "xterm"} | environment).items():
        monkeypatch.setenv(name, value)
    stderr = io.StringIO()
    stderr.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stderr", stderr)
    with session() as console:
        console.progress.start(2, "reading")
        assert ("\x1b" in stderr.getvalue()) == expected


@pytest.mark.parametrize("as_json", [True, False])
def test_a_full_stdout_is_named(
    as_json: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    with session() as console:
        console.print_result("done", {"done": 1}, as_json=as_json)
    assert console.exit_code == 2
    assert capsys.readouterr().err == "error: stdout: No space left on device.\n"


@pytest.mark.parametrize(
    ("interrupt", "code", "word"), [(KeyboardInterrupt, 130, "interrupted"), (Terminated, 143, "terminated")]
)
def test_a_library_that_fails_because_of_an_interrupt_is_no_defect(
    interrupt: type[KeyboardInterrupt], code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with session() as console:
        try:
            try:
                raise interrupt
            finally:
                [].pop()
        except IndexError:
            raise ConfigError("the network cannot be built") from None
    assert console.exit_code == code
    assert capsys.readouterr().err == f"error: {word}.\n"
