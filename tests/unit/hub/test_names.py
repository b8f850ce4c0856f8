"""What is a name on the hub, and what is a local path."""

from pathlib import Path, PureWindowsPath

import pytest

from lbm_lora.errors import ConfigError
from lbm_lora.hub.names import HubName, hub_name


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("user/repo", HubName("user/repo")),
        ("user/repo/", HubName("user/repo")),
        ("stabilityai/stable-diffusion-xl-base-1.0", HubName("stabilityai/stable-diffusion-xl-base-1.0")),
        ("user/repo@v1", HubName("user/repo", revision="v1")),
        ("user/repo@refs/pr/3", HubName("user/repo", revision="refs/pr/3")),
        ("user/repo@refs/pr/3/a.safetensors", HubName("user/repo", "a.safetensors", "refs/pr/3")),
        ("user/repo@dev/a.safetensors", HubName("user/repo", "a.safetensors", "dev")),
        ("user/repo@my%2Fbranch", HubName("user/repo", revision="my/branch")),
        ("user/repo/a/b.safetensors", HubName("user/repo", "a/b.safetensors")),
        ("user/repo/b.safetensors@a1b2", HubName("user/repo", "b.safetensors", "a1b2")),
        ("user/repo/b.safetensors@my/branch", HubName("user/repo", "b.safetensors", "my/branch")),
        ("hf://user/repo@v1", HubName("user/repo", revision="v1")),
    ],
)
def test_a_name_and_its_parts(written: str, name: HubName) -> None:
    assert hub_name(written) == name
    assert hub_name(Path(written)) == name  # a Path has one slash after hf:
    assert hub_name(str(name)) == name or "%2F" in written


@pytest.mark.parametrize(
    "written",
    [
        "lora.safetensors", "./user/repo", "../user/repo", "~/user/repo", "/user/repo", "C:/user/repo", "D:repo/a",
        "user/lora.safetensors", "user/model.CKPT", "user/train.yaml", "user/repo@a@b", "user/repo@a/b@c", "us er/repo",
        "user//repo", "https://huggingface.co/user/repo", str(PureWindowsPath("user", "repo")),
    ],
)  # fmt: skip
def test_what_looks_local_is_local(written: str) -> None:
    assert hub_name(written) is None


def test_what_exists_is_local_and_so_is_a_path_in_an_existing_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_name("user/repo") is not None
    (tmp_path / "user").mkdir()
    assert hub_name("user/repo") is None
    assert hub_name("user/repo/a.safetensors") is None
    assert hub_name("hf://user/repo") == HubName("user/repo")


@pytest.mark.parametrize("written", ["hf://repo", "hf://user/repo@a@b", "hf://user/repo@a/b@c"])
def test_a_scheme_without_a_name_is_refused(written: str) -> None:
    with pytest.raises(ConfigError, match=r"does not name a repository or a file .* Write hf://user/repo, user/repo/"):
        hub_name(written)
