"""Installed libraries against the ranges of the package, with versions that are made up."""

import platform
from email.message import Message as Headers
from importlib import metadata

import pytest

from lbm_lora.machine.libraries import library_checks

WANTED = [
    "torch>=2.6",
    "numpy>=1.26",
    'peft>=0.16; extra == "train"',
    'webdataset>=1.0.2; extra == "train"',
    'gradio>=6.0.2; extra == "app"',
    'lbm-lora[app,train]; extra == "all"',
    'pytest>=8.2; extra == "test"',
]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Name -> version of what is installed; a test changes it."""
    versions = {"torch": "2.13.0+cpu", "numpy": "2.4.6", "peft": "0.21.2", "webdataset": "1.0.2", "gradio": "6.1"}
    about = Headers()
    about["Requires-Python"] = ">=3.11"
    for extra in ("train", "app", "comfy", "all", "test", "docs", "dev"):
        about["Provides-Extra"] = extra

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "requires", lambda name: WANTED)
    monkeypatch.setattr(metadata, "metadata", lambda name: about)
    monkeypatch.setattr(metadata, "version", version)
    return versions


def lines() -> list[tuple[str, str, str, str]]:
    return [(str(one.subject), one.level, str(one.found), str(one.remedy)) for one in library_checks()][2:]


def test_what_fits_is_on_one_line_for_the_package_and_for_each_extra(installed: dict[str, str]) -> None:
    assert lines() == [
        ("libraries", "ok", "torch 2.13.0+cpu, numpy 2.4.6", ""),
        ("extra app", "ok", "gradio 6.1", ""),
        ("extra train", "ok", "peft 0.21.2, webdataset 1.0.2", ""),
    ]


def test_a_library_that_is_too_old_is_a_problem_with_the_command_that_mends_it(installed: dict[str, str]) -> None:
    installed["torch"] = "2.5.1"
    assert lines()[1] == ("torch", "problem", "2.5.1 is not in the tried range >=2.6", 'Run: pip install "torch>=2.6"')


def test_a_missing_library_is_a_problem_and_a_missing_extra_a_note(installed: dict[str, str]) -> None:
    for name in ("numpy", "gradio", "webdataset"):
        del installed[name]
    assert lines() == [
        ("libraries", "problem", "missing: numpy", "Run: pip install lbm-lora"),
        ("libraries", "ok", "torch 2.13.0+cpu", ""),
        ("extra app", "note", "not installed", 'If a command needs it: pip install "lbm-lora[app]"'),
        (
            "extra train",
            "note",
            "not complete, webdataset missing",
            'If a command needs it: pip install "lbm-lora[train]"',
        ),
    ]


def test_a_python_that_is_too_old_is_a_problem(installed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "python_version", lambda: "3.10.4")
    python = library_checks()[1]
    assert (python.level, str(python.found)) == ("problem", "3.10.4 (needs >=3.11)")


def test_sources_without_metadata_are_said_to_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    assert lines()[-1][:2] == ("libraries", "note")
