"""Files of the hub: identical, resumed where a connection broke, and without a network those of the cache."""

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save

from hub_client import hub_of
from hub_server import HubServer
from lbm_lora.errors import HubError
from lbm_lora.hub import repository
from lbm_lora.hub.names import HubName
from lbm_lora.hub.repository import open_repository
from lbm_lora.progress import LbmLoraWarning

DATA = save({"a": torch.arange(20_000.0)}, {"lbm_lora_format": "1"})
FILE = "lora.safetensors"
NAME = HubName("user/repo", revision="main")


def fetched(name: HubName = NAME) -> bytes:
    return (open_repository(name).fetch([FILE]) / FILE).read_bytes()


def test_a_broken_transfer_is_resumed(hub: HubServer) -> None:
    hub.put("user/repo", {FILE: DATA})
    hub.cuts = [30_000]
    assert fetched() == DATA
    assert sum(request.startswith("GET /user/repo/resolve/") for request in hub.requests) == 2


def test_a_transfer_that_stays_broken_is_one_line_and_leaves_no_file(hub: HubServer, tmp_path: Path) -> None:
    hub.put("user/repo", {FILE: DATA})
    hub.cuts = [30_000, *[0] * 20]
    with pytest.raises(
        HubError, match=r"fetched from .* no connection to http://127\S+, or it broke \(.*\)\. Try again"
    ):
        fetched()
    assert not list((tmp_path / "hub").rglob(FILE))
    hub.cuts = []
    assert fetched() == DATA


def test_the_header_is_read_without_the_tensors(hub: HubServer) -> None:
    hub.put("user/repo", {FILE: save({"a": torch.zeros(1_000_000)}, {"lbm_lora_format": "1"})})
    hub.cuts = [0] * 9
    assert open_repository(NAME).header(FILE) == {"lbm_lora_format": "1"}


def test_list_and_files_are_of_one_commit(hub: HubServer) -> None:
    hub.put("user/repo", {FILE: DATA})
    repository = open_repository(NAME)
    hub.put("user/repo", {FILE: DATA + b"newer"})
    assert (repository.fetch([FILE]) / FILE).read_bytes() == DATA


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "no server"])
def test_without_a_network_the_cache_is_the_repository(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    commit = hub.put("user/repo", {FILE: DATA, "other.txt": b""})
    fetched()
    if how == "no server":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    else:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.warns(
        LbmLoraWarning, match=rf"cannot be reached\. What was fetched earlier is used, of commit {commit[:7]};"
    ):
        found = open_repository(HubName("user/repo", revision=commit))
    assert found.files == (FILE,)
    assert found.header(FILE) == {"lbm_lora_format": "1"}
    assert (found.fetch([FILE]) / FILE).read_bytes() == DATA
    reason = "HF_HUB_OFFLINE forbids" if how == "HF_HUB_OFFLINE" else "there is no connection to"
    with pytest.raises(HubError, match=rf"^user/new is not a local path, and cannot be fetched .*{reason}"):
        open_repository(HubName("user/new"))
    with pytest.raises(HubError, match=reason):
        open_repository(HubName("user/repo", revision="v2"))


def test_a_hub_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = cast(HubServer, SimpleNamespace(url=f"http://127.0.0.1:{silent.getsockname()[1]}"))
        with (
            hub_of(server, tmp_path / "hub"),
            pytest.raises(HubError, match=r"there is no connection to http://127\S+"),
        ):
            open_repository(NAME)


def test_a_private_repository_needs_a_token(hub: HubServer, tmp_path: Path) -> None:
    hub.put("user/repo", {FILE: DATA}, private=True)
    assert fetched() == DATA
    with (
        hub_of(hub, tmp_path / "other", token=None),
        pytest.raises(HubError, match="no such repository, or it is private"),
    ):
        fetched()
