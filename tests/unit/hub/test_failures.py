"""One line for each way in which the hub fails, with what to do."""

from pathlib import Path

import pytest

from hub_client import hub_of
from hub_server import HubServer
from lbm_lora.errors import ConfigError, HubError
from lbm_lora.hub.failures import hub_errors
from lbm_lora.hub.resolve import local_lora

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


def test_an_unknown_revision(hub: HubServer) -> None:
    hub.put("user/repo", {"a.safetensors": b""})
    assert said("user/repo@v9") == (
        f"user/repo@v9{HEAD}it has no such revision. Give a branch, a tag or a commit after the @."
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


def test_another_error_keeps_its_own_words() -> None:
    with pytest.raises(HubError) as caught, hub_errors("it failed", repo="a/b"):
        raise OSError(28, "No space left\non device")
    assert str(caught.value) == "it failed: [Errno 28] No space left on device."


def test_our_own_errors_pass() -> None:
    with pytest.raises(ConfigError, match=r"^mine$"), hub_errors("it failed", repo="a/b"):
        raise ConfigError("mine")
