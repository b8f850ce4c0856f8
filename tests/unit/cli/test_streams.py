"""Standard streams that are closed or full change no exit code of a command that does not need them."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = "import sys; from lbm_lora.cli.main import main; sys.exit(main())"


def run(arguments: str, redirections: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    line = f"exec {sys.executable} -c '{SCRIPT}' {arguments} {redirections}"
    return subprocess.run(["sh", "-c", line], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "redirections", "code", "stderr"),
    [
        ("--version", ">&-", 0, ""),
        ("--version", "<&- >&- 2>&-", 0, ""),
        ("inspect --help", ">&-", 0, ""),
        ("inspect --help", ">/dev/full", 2, "error: stdout: No space left on device.\n"),
        ("--version", ">/dev/full 2>/dev/full", 2, ""),
        ("nonsense", "2>&-", 2, ""),
        ("nonsense", ">&- 2>/dev/full", 2, ""),
        ("inspect none.safetensors", ">&- 2>/dev/full", 2, ""),
    ],
)
def test_exit_codes_stay(tmp_path: Path, arguments: str, redirections: str, code: int, stderr: str) -> None:
    found = run(arguments, redirections, tmp_path)
    assert (found.returncode, found.stderr) == (code, stderr)
    assert list(tmp_path.iterdir()) == []


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    script = (
        "from lbm_lora.cli.streams import prepare_streams; prepare_streams(); file = open('a', 'w'); print('out'); "
        "import os; os.write(1, b'low'); file.write(str(file.fileno()))"
    )
    subprocess.run(["sh", "-c", f'exec {sys.executable} -c "{script}" <&- >&- 2>&-'], cwd=tmp_path, check=True)
    assert int((tmp_path / "a").read_text()) > 2
