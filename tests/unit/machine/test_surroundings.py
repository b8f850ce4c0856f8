"""The hub's client, the environment and the encodings. No secret is shown."""

import io
import sys

import huggingface_hub
import pytest
from huggingface_hub import constants

from lbm_lora.machine import machine_checks
from lbm_lora.machine.surroundings import environment_check, hub_checks, text_check, without_password
from lbm_lora.threads import chosen_threads


def test_no_token_or_password_is_shown_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@proxy")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://me:secret@mirror.example/hub")
    checks = machine_checks()
    text = "\n".join(f"{one.found} {one.remedy}" for one in checks)
    assert "secret" not in text
    assert {"https://mirror.example/hub", "set, not shown"} <= {str(one.found) for one in checks}
    assert "HF_TOKEN set, HTTPS_PROXY set" in text


def test_an_offline_hub_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    hub, token = hub_checks()
    assert (hub.level, str(hub.found)) == ("note", "offline (HF_HUB_OFFLINE)")
    assert str(token.found).startswith("none; only push")


def test_variables_that_matter_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("EDITOR", "vi")
    found = str(environment_check().found)
    assert {"OMP_NUM_THREADS=2", "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"} <= set(found.split(", "))
    assert "EDITOR" not in found


def test_a_number_of_threads_that_the_program_has_chosen_is_not_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with chosen_threads(None, print):
        assert "OMP_NUM_THREADS" not in str(environment_check().found)


def test_an_output_that_lacks_letters_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    one = text_check()
    assert (one.level, str(one.found)) == ("note", f"{sys.getfilesystemencoding()} for file names, cp1252 for output")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="UTF8"))
    assert text_check().level == "ok"


def test_a_url_keeps_everything_but_its_password() -> None:
    assert without_password("https://a:b@host:8/x") == "https://host:8/x"
    assert without_password("https://host/x") == "https://host/x"
