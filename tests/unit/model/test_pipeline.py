"""LBMPipeline: an LBM checkpoint as a pipeline, LoRAs in it and out of it again, and the folder that it writes."""

import gc
import json
import shutil
import warnings
import weakref
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.unet_loader_utils import _maybe_expand_lora_scales  # pyright: ignore[reportPrivateUsage]
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image, ImageCms
from safetensors.torch import load_file
from torch import Tensor

from lbm_lora.adapter import Adapter, AdapterMetadata, LoraModule, LoraScale, load_adapter, save_adapter
from lbm_lora.checkpoint import fingerprint, open_checkpoint
from lbm_lora.errors import ConfigError, PatternError, WrongBaseError
from lbm_lora.imaging.image_file import read_image
from lbm_lora.imaging.masks import read_mask
from lbm_lora.model import pipeline
from lbm_lora.model.bridge_pipeline import images_of, masks_of
from lbm_lora.model.loaded_loras import scale_of_blocks
from lbm_lora.model.pipeline import LBMPipeline
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.progress import LbmLoraWarning
from nano import write_nano
from standins import TINY, lbm_unet_config

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small base in fp32."""
    return write_nano(tmp_path_factory.mktemp("base"), torch.float32)


@pytest.fixture(scope="module")
def shared(base: Path) -> LBMPipeline:
    made = LBMPipeline.from_checkpoint(base, torch_dtype="float")
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def pipe(shared: LBMPipeline) -> LBMPipeline:
    """The one pipeline of this module, without LoRAs."""
    shared.unload_lora_weights()
    return shared


@pytest.fixture
def loras(base: Path, tmp_path: Path) -> dict[str, Path]:
    """Two LoRAs of the base, of different ranks and modules, with dense deltas."""
    return {
        name: lora(base, tmp_path / f"{name}.safetensors", rank, seed)
        for name, rank, seed in (("a", 4, 1), ("b", 2, 2))
    }


def lora(base: Path, path: Path, rank: int = 2, seed: int = 0, **changes: Any) -> Path:
    """A random LoRA of a Linear, a conv, and two dense deltas."""
    with open_checkpoint(base) as checkpoint:
        component = checkpoint.component()
        found = fingerprint(component)
        linear = next(name for name in component.specs if name.endswith("attn1.to_q.weight"))
        draw = torch.Generator().manual_seed(seed)
        modules: dict[ModuleName, LoraModule] = {}
        for param in (linear, ParamName("conv_in.weight")):
            out, *rest = component.specs[param].shape
            up = torch.randn(out, rank, *[1] * (len(rest) - 1), generator=draw)
            name = ModuleName(param.removesuffix(".weight"))
            modules[name] = LoraModule(name, torch.randn(rank, *rest, generator=draw), up, float(rank))
        dense = {
            ParamName(f"conv_{end}.bias"): torch.randn(
                component.specs[ParamName(f"conv_{end}.bias")].shape, generator=draw
            )
            for end in ("in", "out")
        }
    values: dict[str, Any] = {"format": "1", "base_fingerprint": found.digest, "base_tensors": found.packed()} | changes
    save_adapter(Adapter(modules, dense, AdapterMetadata(**values), "denoiser."), path)
    return path


def bits(pipe: LBMPipeline) -> dict[str, bytes]:
    state = getattr(pipe.unet, "_orig_mod", pipe.unet).state_dict()
    return {name: value.reshape(-1).view(torch.uint8).numpy().tobytes() for name, value in state.items()}


def hooks(pipe: LBMPipeline) -> int:
    return sum(len(module._forward_hooks) for module in pipe.unet.modules())


def made(pipe: LBMPipeline, **options: Any) -> Any:
    return pipe(PHOTO, size=64, output_type="latent", **options).images


@pytest.mark.parametrize("is_fused", [False, True])
def test_scales_change_live_and_everything_comes_out_bit_for_bit(
    pipe: LBMPipeline, loras: dict[str, Path], is_fused: bool
) -> None:
    before, plain = bits(pipe), made(pipe)
    pipe.load_lora_weights(loras["a"], adapter_name="a")
    if is_fused:
        pipe.fuse_lora()
    assert (hooks(pipe) == 0) == is_fused
    full = made(pipe)
    pipe.set_adapters(["a"], [0.5])
    half = made(pipe)
    pipe.set_adapters("a", -1)
    assert not torch.equal(full, half)
    with pipe.lora_scale(0.5):
        pipe.set_adapters("a")
        torch.testing.assert_close(made(pipe), half, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(made(pipe), full, rtol=1e-4, atol=1e-4)
    with pipe.lora_scale(0.0):
        assert torch.equal(made(pipe), plain)
    pipe.unload_lora_weights()
    assert bits(pipe) == before
    assert hooks(pipe) == 0
    assert torch.equal(made(pipe), plain)


def test_fusing_gives_what_hooks_give_and_is_undone_exactly(pipe: LBMPipeline, loras: dict[str, Path]) -> None:
    for name, path in loras.items():
        pipe.load_lora_weights(path, adapter_name=name)
    pipe.set_adapters(["a", "b"], [0.7, 0.4])
    before, live = bits(pipe), made(pipe)
    pipe.fuse_lora()
    fused = made(pipe)
    torch.testing.assert_close(fused, live, rtol=1e-4, atol=1e-4)
    pipe.fuse_lora(0.5, adapter_names=["b"])
    assert pipe.get_active_adapters() == ["b"]
    assert not torch.allclose(made(pipe), live, atol=1e-3)
    pipe.unfuse_lora()
    pipe.set_adapters(["a", "b"], [0.7, 0.4])
    assert bits(pipe) == before
    assert torch.equal(made(pipe), live)


@pytest.mark.parametrize("is_fused", [False, True])
def test_scales_by_layer(pipe: LBMPipeline, loras: dict[str, Path], is_fused: bool) -> None:
    """Each way to say it; a factor by layer multiplies a scale by layer."""
    before = bits(pipe)
    adapter = load_adapter(loras["a"])
    pipe.load_lora_weights(adapter.filtered(lambda name: name != "conv_in.weight"), adapter_name="attention and biases")
    pipe.load_lora_weights(adapter.filtered(lambda name: name == "conv_in.weight"), adapter_name="conv_in")
    pipe.load_lora_weights(loras["a"], adapter_name="a")
    if is_fused:
        pipe.fuse_lora()
    pipe.set_adapters(["attention and biases", "conv_in"], [1.0, 0.25])
    wanted = made(pipe)
    pipe.set_adapters("a", "1,conv_in.weight=0.25")
    torch.testing.assert_close(made(pipe), wanted, rtol=1e-4, atol=1e-4)
    pipe.set_adapters("a", "2,conv_in.weight=-1")
    with pipe.lora_scale("0.5,conv_in.weight=-0.25"):
        torch.testing.assert_close(made(pipe), wanted, rtol=1e-4, atol=1e-4)
    pipe.set_adapters("a")
    pipe.fuse_lora("1,conv_in.weight=0.25")
    torch.testing.assert_close(made(pipe), wanted, rtol=1e-4, atol=1e-4)
    pipe.unfuse_lora()
    full, block = made(pipe), {"down": {"block_1": 0.0}}
    pipe.set_adapters("a", block)
    assert not torch.allclose(made(pipe), full, atol=1e-3)
    pipe.set_adapters("a", "down_blocks.1.=0")
    blocked = made(pipe)
    pipe.set_adapters(["a"], [block])
    assert torch.equal(made(pipe), blocked)
    with pytest.raises(PatternError, match=r"a\.safetensors: pattern 'mid_block\.' matches none of 4 names"):
        pipe.set_adapters("a", {"mid": 0.5})
    assert torch.equal(made(pipe), blocked)
    pipe.unload_lora_weights()
    assert bits(pipe) == before


def test_a_lora_of_sdxl_is_taken_with_what_makes_sense(pipe: LBMPipeline, base: Path) -> None:
    with open_checkpoint(base) as checkpoint:
        specs = checkpoint.component().specs
    query = next(name for name in specs if name.endswith("attn2.to_q.weight"))
    key = ParamName(query.replace("to_q", "to_k"))
    (width, columns), draw = specs[key].shape, torch.Generator().manual_seed(0)
    modules = {
        name: LoraModule(name, torch.randn(2, width_in, generator=draw), torch.randn(width, 2, generator=draw), 2.0)
        for name, width_in in (
            (ModuleName(query.removesuffix(".weight")), specs[query].shape[1]),
            (ModuleName(key.removesuffix(".weight")), columns + 40),
        )
    }
    sdxl, unknown = Adapter(modules, {}), "does not say which base it was made from"
    with pytest.warns(LbmLoraWarning, match=unknown), pytest.warns(LbmLoraWarning, match="Left out: 1 delta"):
        pipe.load_lora_weights(sdxl, "without")
    assert hooks(pipe) == 1
    with pytest.warns(LbmLoraWarning, match=unknown), pytest.warns(LbmLoraWarning, match="Cropped"):
        pipe.load_lora_weights(sdxl, "cropped", crop=True)
    assert hooks(pipe) == 2


def test_a_lora_of_another_base_is_refused_and_let_in_on_demand(pipe: LBMPipeline, base: Path, tmp_path: Path) -> None:
    before = bits(pipe)
    other = lora(base, tmp_path / "other.safetensors", base_fingerprint="another")
    with pytest.raises(WrongBaseError, match="was made from another base than"):
        pipe.load_lora_weights(other)
    assert pipe.get_list_adapters() == {}
    assert bits(pipe) == before
    with pytest.warns(LbmLoraWarning, match="another base"):
        pipe.load_lora_weights(other, allow_other_base=True)
    assert pipe.get_list_adapters() == {"unet": ["default_0"]}


def test_offloaded_networks_take_loras(pipe: LBMPipeline, loras: dict[str, Path]) -> None:
    pipe.load_lora_weights(loras["a"])
    tuned = made(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    torch.testing.assert_close(made(pipe), tuned, rtol=1e-4, atol=1e-4)
    pipe.set_adapters("default_0", 0.5)
    assert not torch.allclose(made(pipe), tuned, atol=1e-3)
    pipe.set_adapters("default_0")
    torch.testing.assert_close(made(pipe), tuned, rtol=1e-4, atol=1e-4)
    pipe.remove_all_hooks()


def test_hooks_give_way_to_fused_weights_where_the_unet_is_compiled(
    pipe: LBMPipeline, loras: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled code does not see hooks that come later. What torch.compile leaves in a module stands in for it here."""
    pipe.load_lora_weights(loras["a"])
    tuned, before = made(pipe), hooks(pipe)
    monkeypatch.setattr(pipe.unet, "_compiled_call_impl", pipe.unet._call_impl)
    torch.testing.assert_close(made(pipe), tuned, rtol=1e-4, atol=1e-4)
    pipe.load_lora_weights(loras["b"])
    assert (before, hooks(pipe)) == (2, 0)


@pytest.mark.slow
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_compiled_unet_computes_with_the_loras(base: Path, loras: dict[str, Path], is_wrapped: bool) -> None:
    pipe = LBMPipeline.from_checkpoint(base, torch_dtype="float")
    pipe.set_progress_bar_config(disable=True)
    plain = made(pipe)
    pipe.load_lora_weights(loras["a"])
    tuned = made(pipe)
    if is_wrapped:
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    else:
        pipe.unet.compile(backend="eager")
    torch.testing.assert_close(made(pipe), tuned, rtol=1e-4, atol=1e-4)
    pipe.unload_lora_weights()
    torch.testing.assert_close(made(pipe), plain, rtol=1e-4, atol=1e-4)
    pipe.load_lora_weights(loras["a"])
    torch.testing.assert_close(made(pipe), tuned, rtol=1e-4, atol=1e-4)


def test_a_folder_gives_the_same_pipeline_with_its_loras(
    pipe: LBMPipeline, loras: dict[str, Path], tmp_path: Path
) -> None:
    pipe.save_pretrained(tmp_path / "folder")
    index = json.loads((tmp_path / "folder/model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "LatentBridgePipeline"]
    assert (tmp_path / "folder/pipeline.py").is_file()
    found = LBMPipeline.from_pretrained(tmp_path / "folder")
    found.set_progress_bar_config(disable=True)
    assert type(found) is LBMPipeline
    assert bits(found) == bits(pipe)
    assert found.config["base_fingerprint"] == fingerprint(open_checkpoint(pipe._base or "").component()).digest
    for each in (pipe, found):
        each.load_lora_weights(loras["a"])
    # products of weights that lie elsewhere in memory may differ in their last bits
    torch.testing.assert_close(made(found), made(pipe), rtol=1e-4, atol=1e-4)


def test_loras_are_saved_in_the_weights_or_not_at_all(
    pipe: LBMPipeline, loras: dict[str, Path], tmp_path: Path
) -> None:
    pipe.load_lora_weights(loras["a"])
    with pytest.raises(ConfigError, match=r"Call fuse_lora\(\) to save the model with them in its weights"):
        pipe.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    pipe.fuse_lora()
    pipe.save_pretrained(tmp_path / "folder")
    found = LBMPipeline.from_pretrained(tmp_path / "folder")
    found.set_progress_bar_config(disable=True)
    assert bits(found) == bits(pipe)
    with pytest.raises(WrongBaseError):
        found.load_lora_weights(loras["b"])


def unchecked(path: str | None) -> Any:
    """A module of the package without the type checks of the test run, as its users have it."""
    spec = spec_from_file_location("unchecked", str(path))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_scales_of_another_kind(shared: LBMPipeline, loras: dict[str, Path]) -> None:
    parts = shared.components
    pipe: Any = unchecked(pipeline.__file__).LBMPipeline(parts["unet"], parts["vae"], parts["scheduler"])
    pipe.set_progress_bar_config(disable=True)
    with pytest.warns(LbmLoraWarning, match="does not know the file of its base"):
        pipe.load_lora_weights(loras["a"], adapter_name="a")
    full = made(pipe)
    pipe.set_adapters(["a"], [0.5])
    assert not torch.equal(made(pipe), full)
    pipe.set_adapters(["a"], [None])
    assert torch.equal(made(pipe), full)
    pipe.set_adapters(["a"], [0.5])
    half = made(pipe)
    for weights in ({"unet": 0.5}, "0.5", ["0.5"], LoraScale(0.5)):
        pipe.set_adapters(["a"])
        pipe.set_adapters(["a"], weights)
        assert torch.equal(made(pipe), half)
    with pytest.raises(TypeError, match=r"^adapter_weights must be a number, or numbers by layer such as '1,attn1=0'"):
        pipe.set_adapters(["a"], [object()])
    with pytest.raises(TypeError, match=r"^scale must be a number"), pipe.lora_scale(None):
        pass
    with pytest.raises(TypeError, match=r"^lora_scale must be a number"):
        pipe.fuse_lora([0.5])
    with pytest.raises(ConfigError, match=r"^lora_scale 'half': 'half' is not a number"):
        pipe.fuse_lora("half")
    with pytest.raises(ConfigError, match=r"^adapter_weights has 2 values for 1 LoRA\. Give a number for all"):
        pipe.set_adapters(["a"], [1, 2])
    with pytest.raises(ConfigError, match=r"^adapter_weights has 1 value for 2 LoRAs"):
        pipe.set_adapters(["a", "b"], [1])  # diffusers refuses it, too
    pipe.unload_lora_weights()


def test_a_lora_is_a_file_a_file_in_a_folder_or_a_state_dict(pipe: LBMPipeline, loras: dict[str, Path]) -> None:
    results: list[Tensor] = []
    ways: list[tuple[Any, str | None]] = [
        (loras["a"], None),
        (str(loras["a"].parent), "a.safetensors"),
        (load_file(loras["a"]), None),
    ]
    for lora, weight_name in ways:
        pipe.unload_lora_weights()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LbmLoraWarning)  # a state dict does not say what its base is
            pipe.load_lora_weights(lora, weight_name=weight_name)
        results.append(made(pipe))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def another(base: Path) -> LBMPipeline:
    pipe = LBMPipeline.from_checkpoint(base, torch_dtype="bf16")
    pipe.register_to_config(trained_steps=[1])
    return pipe


@pytest.mark.filterwarnings("ignore:images with 16 bits")
@pytest.mark.filterwarnings("ignore:.*is partly transparent")
def test_files_are_read_as_the_commands_read_them(tmp_path: Path) -> None:
    """16 bits, transparent parts, colour profiles, orientation; the published program has code of its own."""
    ramp = np.tile(np.linspace(0, 1, 64), (64, 1))
    wide = Image.fromarray((ramp * 65535).round().astype(np.uint16))
    cut = np.zeros((64, 64, 4), np.uint8)
    cut[16:48, 16:48] = (200, 100, 50, 255)
    photo = Image.effect_noise((64, 64), 60).convert("RGB")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    other = profile.replace("sRGB".encode("utf-16-be"), "xyz!".encode("utf-16-be"))
    assert other != profile, "by its description it is another one"
    turned = Image.Exif()
    turned[0x112] = 6
    photo.crop((0, 0, 32, 64)).save(tmp_path / "turned.jpg", exif=turned)
    photo.save(tmp_path / "srgb.png", icc_profile=profile)
    photo.save(tmp_path / "other.png", icc_profile=other)
    photo.save(tmp_path / "broken.png", icc_profile=b"no profile" * 20)
    wide.save(tmp_path / "wide.png")
    wide.save(tmp_path / "wide.tiff")
    Image.fromarray(cut).save(tmp_path / "cut.png")
    photo.quantize(8).save(tmp_path / "palette.png", transparency=0)
    for path in sorted(tmp_path.iterdir()):
        (found,) = images_of(path)
        (given,) = images_of(Image.open(path))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*colour profile cannot be used")
            wanted = read_image(path)
        assert isinstance(found, Image.Image)
        assert isinstance(given, Image.Image)
        assert found.tobytes() == given.tobytes() == wanted.tobytes(), path.name
        mask = next(masks_of(path, [wanted]))
        assert mask is not None
        assert mask.tobytes() == read_mask(path, wanted.size).tobytes(), path.name


def test_a_pipeline_is_not_saved_into_the_folder_of_its_checkpoint(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "relighting"
    folder.mkdir()
    for file in (base, base.parent / "config.yaml"):
        shutil.copy(file, folder)
    pipe = LBMPipeline.from_checkpoint(folder)
    with pytest.raises(ConfigError, match="relighting is the model that this pipeline was loaded from"):
        pipe.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", base.name]
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / "unet").is_dir()


def test_a_pipeline_is_not_saved_over_its_own_base(base: Path, tmp_path: Path) -> None:
    LBMPipeline.from_checkpoint(base).save_pretrained(tmp_path / "pipe")
    before = contents(tmp_path / "pipe")
    pipe = LBMPipeline.from_pretrained(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    with pytest.raises(ConfigError, match=r"link is the model that this pipeline was loaded from, and would be"):
        pipe.save_pretrained(tmp_path / "link")
    assert {path: path.read_bytes() for path in before} == before
    again = LBMPipeline.from_pipe(pipe)
    with pytest.raises(ConfigError, match="is the model that this pipeline was loaded from"):
        again.save_pretrained(tmp_path / "pipe")
    pipe.save_pretrained(tmp_path / "other")
    vae = type(pipe.vae).from_pretrained(tmp_path / "pipe", subfolder="vae")
    with pytest.raises(FileExistsError, match="is the model that this pipeline was loaded from"):
        LBMPipeline.from_pretrained(tmp_path / "other", vae=vae).save_pretrained(tmp_path / "pipe")
    tuned = LBMPipeline.from_pretrained(tmp_path / "pipe", unet=pipe.unet)
    with pytest.raises(ConfigError, match="is the model that this pipeline was loaded from"):
        tuned.save_pretrained(tmp_path / "pipe")
    diffusers = DiffusionPipeline.from_pretrained(tmp_path / "pipe", trust_remote_code=True)
    with pytest.raises(ConfigError, match="is the model that this pipeline was loaded from"):
        LBMPipeline.from_pipe(diffusers).save_pretrained(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="is the model that this pipeline was loaded from"):
        diffusers.save_pretrained(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="is the model that this pipeline was loaded from"):
        pipe.save_config(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="is the model that this pipeline was loaded from"):
        LBMPipeline(pipe.unet, pipe.vae, pipe.scheduler).save_pretrained(tmp_path / "pipe")
    assert {path: path.read_bytes() for path in before} == before


def test_a_discarded_pipeline_leaves_the_memory_at_once(base: Path, loras: dict[str, Path]) -> None:
    """Two models of 5 GB would not fit on many a GPU, and Python collects cycles when it likes."""
    pipe = LBMPipeline.from_checkpoint(base)
    pipe.load_lora_weights(next(iter(loras.values())))
    pipe(Image.new("RGB", (64, 64)), num_inference_steps=1)
    network = weakref.ref(pipe.unet)
    gc.disable()
    try:
        del pipe
        assert network() is None
    finally:
        gc.enable()


def test_weights_of_an_earlier_save_go_and_other_files_stay(base: Path, tmp_path: Path) -> None:
    pipe, folder = LBMPipeline.from_checkpoint(base), tmp_path / "pipe"
    for variant in (None, "fp16"):
        pipe.save_pretrained(folder, max_shard_size="50KB", variant=variant)
    others = {path for path in folder.rglob("*fp16*") if path.is_file()}
    assert len(others) > 4
    others.add(folder / "unet" / "mine.safetensors")
    (folder / "unet" / "mine.safetensors").write_text("mine")
    (folder / "README.md").write_text("mine")
    for options in ({}, {"safe_serialization": False}, {"max_shard_size": "50KB"}):
        later = LBMPipeline.from_checkpoint(base, torch_dtype="float")
        later.unet.conv_in.bias = torch.nn.Parameter(later.unet.conv_in.bias + len(str(options)))
        later.save_pretrained(folder, **options)
        assert bits(LBMPipeline.from_pretrained(folder)) == bits(later)
        assert {path for path in folder.rglob("*") if "fp16" in path.name or path.name == "mine.safetensors"} == others
    LBMPipeline.from_pretrained(folder, variant="fp16")
    assert (folder / "README.md").read_text() == "mine"
    with pytest.raises(FileExistsError, match=r"pipeline\.py is a file"):
        pipe.save_pretrained(folder / "pipeline.py")


def test_a_save_that_fails_leaves_the_earlier_model(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pipe"
    LBMPipeline.from_checkpoint(base).save_pretrained(folder)
    files, later = contents(folder), another(base)
    monkeypatch.setattr(later.vae, "save_pretrained", lambda *_, **__: pytest.fail("no space left"))
    for place in (folder, tmp_path / "new"):
        with pytest.raises(pytest.fail.Exception, match="no space left"):
            later.save_pretrained(place)
    assert contents(tmp_path) == files
    assert not (tmp_path / "new").exists()


WITH_ATTENTION = ("down_blocks.1.", "down_blocks.2.", "mid_block.", "up_blocks.0.", "up_blocks.1.")


@pytest.mark.parametrize(
    "scales",
    [
        {"down": 0.5, "mid": 2, "up": {"block_0": -1.0}},
        {"up": {"block_0": 0.5, "block_1": [0.1, 0.2, 0.3]}, "down": {"block_2": [0.0, 4.0]}},
    ],
)
def test_each_layer_is_scaled_as_by_diffusers(scales: dict[str, Any]) -> None:
    """Compared on the blocks with attention: diffusers has no scale for the others."""
    config = {key: value for key, value in lbm_unet_config(TINY).items() if not key.startswith("_")}
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    names = [ParamName(name) for name in unet.state_dict() if name.startswith(WITH_ATTENTION)]
    expanded: Any = _maybe_expand_lora_scales(unet, [scales])[0]
    found = scale_of_blocks(scales).by_param(names)
    for name in names:
        parts = name.split(".")
        block = "mid_block.attentions.0" if parts[0] == "mid_block" else ".".join([*parts[:2], "attentions", parts[3]])
        assert found[name] == expanded[block], name
    assert set(found.values()) > {1.0} or len(set(found.values())) > 1
