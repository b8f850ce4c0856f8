"""`push`: a repository that lbm-lora and diffusers load, in one commit, or nothing at all."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import lbm_lora
from hub_client import hub_of
from hub_server import HubServer
from lbm_lora.adapter import FORMAT, Adapter, AdapterMetadata, LoraModule, load_adapter, save_adapter
from lbm_lora.adapter.metadata import STEP_KEY
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import ConfigError, HubError, OutputError
from lbm_lora.hub import local_lora
from lbm_lora.model.build import load_model
from lbm_lora.naming import ModuleName, ParamName, bias_of, weight_of
from lbm_lora.verbs.push import TWIN, PushResult, push
from standins import Lbm

LAYER = ModuleName("mid_block.attentions.0.proj_in")


@pytest.fixture(scope="module")
def lora(lbm: Lbm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A native LoRA of two layers, a bias and a norm of that model."""
    path = tmp_path_factory.mktemp("lora") / "relight.safetensors"
    generator = torch.Generator().manual_seed(0)
    with open_checkpoint(lbm.base) as checkpoint:
        shapes = {name: spec.shape for name, spec in checkpoint.component().specs.items()}

    def values(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    modules: dict[ModuleName, LoraModule] = {}
    for name in (LAYER, ModuleName("conv_in")):
        out, *rest = shapes[weight_of(name)]
        modules[name] = LoraModule(name, down=values(2, *rest), up=values(out, 2, *(1 for _ in rest[1:])), alpha=1.0)
    dense = {name: values(*shapes[name]) for name in (ParamName(f"{LAYER}.bias"), ParamName("conv_norm_out.weight"))}
    facts = {"lbm_lora_errors": '{"relative_error":0.2}'}
    save_adapter(Adapter(modules, dense, AdapterMetadata(format=FORMAT, facts=facts), "denoiser."), path)
    return path


def pushed(lora: Path, to: str = "user/repo", **options: Any) -> PushResult:
    values: dict[str, Any] = {"base_model": "user/lbm", **options}
    return push(lora, to, **values)


def test_what_is_pushed_is_pulled_byte_for_byte(hub: HubServer, lora: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "lemon.png")
    result = pushed(lora, images=tmp_path / "lemon.png", private=True)
    repo = hub.repos["user/repo"]
    assert (repo.private, repo.messages) == (True, ["initial commit", "Upload relight.safetensors"])
    assert (result.url, result.commit) == (f"{hub.url}/user/repo", repo.branches["main"])
    files = repo.commits[result.commit]
    assert [file.path for file in result.files] == ["README.md", "relight.safetensors", TWIN, "images/lemon.png"]
    assert {file.path: file.nbytes for file in result.files}.items() <= {k: len(v) for k, v in files.items()}.items()
    assert files["relight.safetensors"] == local_lora("user/repo").read_bytes() == lora.read_bytes()
    assert files["images/lemon.png"] == (tmp_path / "lemon.png").read_bytes()
    assert local_lora("user/repo").name == "relight.safetensors"


def test_the_pushed_repository_is_loaded_by_diffusers(hub: HubServer, lbm: Lbm, lora: Path) -> None:
    assert pushed(lora).dropped == ("conv_norm_out.weight",)
    adapter = load_adapter(lora)
    unet = load_model(lbm.base, dtype=torch.float32).denoiser
    layers = {name: unet.get_submodule(name) for name in adapter.modules}
    inputs = {name: torch.ones(1, *module.shape[1:]) for name, module in adapter.modules.items()}
    before = {name: layer(inputs[name]) for name, layer in layers.items()}
    unet.load_lora_adapter("user/repo", weight_name=TWIN, prefix="unet")
    for name, module in adapter.modules.items():
        found = unet.get_submodule(name)(inputs[name]) - before[name]
        if module.down.ndim == 4:
            low = torch.nn.functional.conv2d(inputs[name], module.down, padding=1)
            expected = module.scaling * torch.nn.functional.conv2d(low, module.up)
        else:
            expected = module.scaling * inputs[name] @ module.down.T @ module.up.T
        if bias_of(name) in adapter.dense:
            expected = expected + adapter.dense[bias_of(name)]
        assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))


def test_a_branch(hub: HubServer, lora: Path) -> None:
    result = pushed(lora, to="user/repo@v1", message="first")
    assert result.url == f"{hub.url}/user/repo/tree/v1"
    assert hub.repos["user/repo"].messages[-1] == "first"
    assert "README.md" not in hub.repos["user/repo"].commits[hub.repos["user/repo"].branches["main"]]
    assert local_lora("user/repo@v1").read_bytes() == lora.read_bytes()


def test_save_to_writes_the_files_and_uploads_nothing(hub: HubServer, lora: Path, tmp_path: Path) -> None:
    result = pushed(lora, save_to=tmp_path / "look")
    assert sorted(path.name for path in (tmp_path / "look").iterdir()) == ["README.md", TWIN, "relight.safetensors"]
    assert (result.url, result.commit, result.folder) == ("", "", tmp_path / "look")
    assert hub.requests == []


@pytest.mark.parametrize("path", ["README.md", "relight.safetensors", TWIN, "images/lemon.png"])
def test_files_of_others_in_the_repository_stay(hub: HubServer, lora: Path, tmp_path: Path, path: str) -> None:
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "lemon.png")
    image = tmp_path / "lemon.png"
    for _ in range(2):
        pushed(lora, images=image)
    repo = hub.repos["user/repo"]
    ours = repo.commits[repo.branches["main"]]
    before = hub.put("user/repo", {path: b"theirs"})
    with pytest.raises(OutputError, match=rf"^{path} exists in user/repo, and .*, or use overwrite to replace it\.$"):
        pushed(lora, images=image)
    assert repo.branches["main"] == before
    pushed(lora, images=image, overwrite=True)
    assert repo.commits[repo.branches["main"]] == ours


def test_a_lora_with_the_name_of_the_twin_is_renamed(hub: HubServer, lora: Path, tmp_path: Path) -> None:
    pushed(lora, save_to=tmp_path / "look")
    pushed(tmp_path / "look" / TWIN, to="user/other")
    files = hub.repos["user/other"].commits[hub.repos["user/other"].branches["main"]]
    assert {"lora.safetensors", TWIN} < set(files)
    pulled = load_file(local_lora("user/other"))
    assert any(key.endswith(".lora_up.weight") for key in pulled)  # a foreign file is published as a native one


def test_without_a_base_the_widths_must_be_those_of_sdxl(hub: HubServer, lora: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not for networks of SDXL's widths\. .*: base_model user/repo\.$"):
        pushed(lora, base_model=None)
    assert hub.requests == []


def test_a_card_that_the_hub_refuses_makes_no_repository(hub: HubServer, lora: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        pushed(lora, license="gpl")
    assert str(caught.value) == (
        'the hub refuses the model card: "license" must be one of the licenses of the hub. '
        "Check license and base_model."
    )
    assert hub.repos == {}
    assert hub.large == {}


def test_a_wrong_token_and_no_token(hub: HubServer, lora: Path, tmp_path: Path) -> None:
    for token in ("hf_wrong", None):
        with (
            hub_of(hub, tmp_path, token=token),
            pytest.raises(HubError, match=r"^user/repo cannot be published .*: the token is missing, or not valid\."),
        ):
            pushed(lora)
    assert hub.repos == {}


def test_a_name_space_of_others(hub: HubServer, lora: Path) -> None:
    with pytest.raises(HubError, match=r"the token does not permit it \(.*org\)\. Use one that may write to org:"):
        pushed(lora, to="org/repo")


def test_a_public_repository_is_not_private(hub: HubServer, lora: Path) -> None:
    hub.put("user/repo", {"a": b""})
    with pytest.raises(ConfigError, match=r"^user/repo exists and is public, .* or leave out private\.$"):
        pushed(lora, private=True)
    assert hub.large == {}


@pytest.mark.parametrize("to", ["user", "user/repo/file.safetensors", "hf://user/repo/x"])
def test_what_is_not_a_repository(lora: Path, to: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pushed(lora, to=to)
    assert str(caught.value) == f"to must be user/repo or user/repo@branch, got {to}."


def test_too_many_pictures_and_two_of_one_name(lora: Path, tmp_path: Path) -> None:
    for number in range(13):
        path = tmp_path / f"{number // 12}" / f"{number % 12}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2), (number, 0, 0)).save(path)
    with pytest.raises(ConfigError, match="images gives 13 images, and a card shows 12 at most"):
        pushed(lora, images=tmp_path / "*" / "*.png")
    with pytest.raises(ConfigError, match="images gives several images of the same name"):
        pushed(lora, images=tmp_path / "*" / "0.png")


def test_a_picture_that_is_a_link_to_nothing(lora: Path, tmp_path: Path) -> None:
    look, pictures = tmp_path / "look", tmp_path / "pictures"
    (look / "images").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(look / "images" / "a.png")
    pictures.mkdir()
    (pictures / "a.png").symlink_to("nothing.png")
    with pytest.raises(OutputError, match=r"images/a\.png exists, and lbm-lora did not write it"):
        pushed(lora, images=pictures, save_to=look)
    assert [path.name for path in look.iterdir()] == ["images"]


def test_what_a_training_run_has_saved_stays_in_its_folder(lora: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    saved = out / lora.name
    adapter = load_adapter(lora)
    save_adapter(replace(adapter, metadata=replace(adapter.metadata, facts={STEP_KEY: "100 0123"})), saved)
    before = saved.read_bytes()
    with pytest.raises(OutputError, match="exists, and a training run has saved it"):
        pushed(lora, save_to=out)
    assert saved.read_bytes() == before
    given = tmp_path / "copies" / lora.name
    for _ in range(2):  # an earlier copy of the same file is no obstacle
        pushed(saved, save_to=given.parent)
    assert given.read_bytes() == before
    saved.unlink()
    save_adapter(replace(adapter, metadata=replace(adapter.metadata, facts={STEP_KEY: "200 0123"})), saved)
    with pytest.raises(OutputError, match="exists, and a training run has saved it"):
        pushed(saved, save_to=given.parent)
    assert given.read_bytes() == before


def test_an_adapter_in_memory_with_an_image_is_published_and_loaded_by_name(hub: HubServer) -> None:
    module = LoraModule(LAYER, down=torch.ones(2, 8), up=torch.ones(8, 2), alpha=2.0)
    adapter = Adapter({module.name: module}, {}, prefix="denoiser.")
    result = push(adapter, "user/repo", images=Image.new("RGB", (4, 4)), base_model="user/lbm")
    assert [file.path for file in result.files][1:] == ["lora.safetensors", TWIN, "images/image-1.png"]
    assert torch.equal(lbm_lora.load_adapter("user/repo").modules[module.name].up, module.up)
