"""Repositories in the place of paths: which file is taken, byte for byte, and what is said where that fails."""

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
from lbm_lora.hub import fetch
from lbm_lora.hub.fetch import local_checkpoint, local_lora, open_repository
from lbm_lora.hub.names import HubName
from lbm_lora.progress import LbmLoraWarning


def tensors(seed: int = 0, **header: str) -> bytes:
    return save({"a": torch.full((4, 4), float(seed))}, header or None)


OURS = tensors(1, lbm_lora_format="1")
TWIN = tensors(2, format="pt")


@pytest.mark.parametrize(
    ("files", "taken"),
    [
        ({"only.safetensors": TWIN, "README.md": b""}, "only.safetensors"),
        ({"pytorch_lora_weights.safetensors": TWIN, "ours.safetensors": OURS}, "ours.safetensors"),
        ({"pytorch_lora_weights.safetensors": TWIN, "other.safetensors": TWIN}, "pytorch_lora_weights.safetensors"),
        ({"pytorch_lora_weights.safetensors": TWIN, "adapter_model.safetensors": TWIN}, "adapter_model.safetensors"),
    ],
)
def test_a_repository_gives_our_lora_else_that_of_diffusers_else_the_only_one(
    hub: HubServer, files: dict[str, bytes], taken: str
) -> None:
    hub.put("user/repo", files)
    path = local_lora("user/repo")
    assert (path.name, path.read_bytes()) == (taken, files[taken])
    assert sorted(one.name for one in path.parent.iterdir()) == [taken]  # nothing else is fetched


def test_a_folder_of_a_repository_and_the_configuration_of_peft(hub: HubServer) -> None:
    files = {"peft/adapter_model.safetensors": TWIN, "peft/adapter_config.json": b"{}", "a.safetensors": OURS}
    hub.put("user/repo", files)
    path = local_lora("user/repo/peft")
    assert path.name == "adapter_model.safetensors"
    assert path.with_name("adapter_config.json").read_bytes() == b"{}"
    assert local_lora("user/repo").name == "a.safetensors"


def test_several_of_ours_are_listed(hub: HubServer) -> None:
    hub.put("user/repo", {"r8.safetensors": OURS, "r32.safetensors": OURS, "pytorch_lora_weights.safetensors": TWIN})
    with pytest.raises(HubError) as caught:
        local_lora("user/repo@main")
    assert str(caught.value) == (
        "user/repo on the Hugging Face hub has several LoRAs: r32.safetensors, r8.safetensors. "
        "Name one: user/repo/r32.safetensors@main."
    )


def test_a_file_at_a_revision(hub: HubServer) -> None:
    first = hub.put("user/repo", {"a/r8.safetensors": tensors(1), "b.safetensors": TWIN})
    hub.put("user/repo", {"a/r8.safetensors": tensors(2)})
    hub.put("user/repo", {"a/r8.safetensors": tensors(3)}, branch="dev")
    for name, seed in {"": 2, f"@{first}": 1, f"@{first[:40]}": 1, "@dev": 3}.items():
        assert local_lora(f"user/repo/a/r8.safetensors{name}").read_bytes() == tensors(seed)
    assert local_lora("hf://user/repo@dev/a/r8.safetensors").read_bytes() == tensors(3)


def test_a_file_that_is_not_there_names_the_nearest(hub: HubServer) -> None:
    hub.put("user/repo", {"relight.safetensors": OURS})
    with pytest.raises(HubError) as caught:
        local_lora("user/repo/relihgt.safetensors")
    assert str(caught.value) == (
        "user/repo on the Hugging Face hub has no file relihgt.safetensors. Did you mean user/repo/relight.safetensors?"
    )
    with pytest.raises(HubError, match=r"has no file unet\. It holds relight\.safetensors\.$"):
        local_checkpoint("user/repo/unet")


def test_a_checkpoint_comes_with_its_configuration(hub: HubServer) -> None:
    hub.put("user/lbm", {"model.safetensors": OURS, "config.yaml": b"a: 1\n", "assets/big.png": b"x", "README.md": b""})
    path = local_checkpoint("user/lbm")
    assert path.name == "model.safetensors"
    assert sorted(one.name for one in path.parent.iterdir()) == ["config.yaml", "model.safetensors"]
    assert local_checkpoint("user/lbm/model.safetensors") == path


def test_shards_are_fetched_with_their_index(hub: HubServer) -> None:
    shards = [f"unet/model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    hub.put("user/lbm", {"unet/model.safetensors.index.json": b"{}", **dict.fromkeys(shards, OURS), "a.ckpt": b""})
    path = local_checkpoint("user/lbm/unet")
    assert path.name == "model.safetensors.index.json"
    assert sorted(one.name for one in path.parent.iterdir())[:2] == [Path(shard).name for shard in shards]
    assert local_checkpoint("user/lbm").name == "a.ckpt"


def test_local_paths_are_not_looked_up(hub: HubServer, tmp_path: Path) -> None:
    for path in (tmp_path / "a" / "b", Path("lora.safetensors"), "missing/lora.safetensors"):
        assert local_lora(path) == local_checkpoint(path) == Path(path)
    assert hub.requests == []


DATA = save({"a": torch.arange(20_000.0)}, {"lbm_lora_format": "1"})
FILE = "lora.safetensors"
NAME = HubName("user/repo", revision="main")


def fetched(name: HubName = NAME) -> bytes:
    return (open_repository(name).fetch([FILE]) / FILE).read_bytes()


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
    monkeypatch.setattr(fetch, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = cast(HubServer, SimpleNamespace(url=f"http://127.0.0.1:{silent.getsockname()[1]}"))
        with (
            hub_of(server, tmp_path / "hub"),
            pytest.raises(HubError, match=r"there is no connection to http://127\S+"),
        ):
            open_repository(NAME)


HEAD = " is not a local path, and cannot be fetched from the Hugging Face hub: "


def said(name: str) -> str:
    with pytest.raises(HubError) as caught:
        local_lora(name)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_an_unknown_repository(hub: HubServer) -> None:
    assert said("user/nothing") == (
        f"user/nothing{HEAD}there is no such repository, or it is private. Check the name; for a private one, "
        "run `hf auth login`, or set HF_TOKEN."
    )


def test_a_gated_repository(hub: HubServer) -> None:
    hub.put("user/repo", {"a.safetensors": b""}, gated=True)
    assert said("user/repo") == (
        f"user/repo{HEAD}its owner must grant access. Accept the conditions on {hub.url}/user/repo, then run "
        "`hf auth login`, or set HF_TOKEN."
    )


def test_a_wrong_token(hub: HubServer, tmp_path: Path) -> None:
    hub.put("user/repo", {"a.safetensors": b""})
    with hub_of(hub, tmp_path, token="hf_wrong"):
        assert said("user/repo") == (
            f"user/repo{HEAD}the token is missing, or not valid. Make one on {hub.url}/settings/tokens, and run "
            "`hf auth login`, or set HF_TOKEN."
        )
