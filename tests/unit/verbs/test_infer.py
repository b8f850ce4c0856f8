"""`infer` on a small random LBM: files in, files out."""

import errno
import math
import shutil
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lbm_lora.adapter import Adapter, AdapterMetadata, LoraModule, load_adapter, save_adapter
from lbm_lora.checkpoint import fingerprint, open_checkpoint
from lbm_lora.errors import ConfigError, ImageError, InputError, OutputError, WrongBaseError
from lbm_lora.imaging.image_file import RESULT, write_image
from lbm_lora.naming import DENOISER_PREFIX, ModuleName, ParamName
from lbm_lora.progress import LbmLoraWarning
from lbm_lora.verbs.infer import InferResult, infer
from standins import TINY, base_tensors, delta, write_backbone, write_base, write_tuned


@dataclass
class Files:
    """A base, its tuned descendant, and the exact LoRA between them."""

    base: Path
    tuned: Path
    lora: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("models")
    base = write_base(folder / "base", TINY, dtype=torch.float32)
    tuned = write_tuned(folder / "tuned", TINY, dtype=torch.float32)
    save_adapter(exact_adapter(base), folder / "lora.safetensors")
    return Files(base=base, tuned=tuned, lora=folder / "lora.safetensors")


def exact_adapter(base: Path) -> Adapter:
    """The stand-in's deltas at full rank, in fp32."""
    modules: dict[ModuleName, LoraModule] = {}
    dense: dict[ParamName, torch.Tensor] = {}
    for key, tensor in base_tensors(TINY).items():
        name = key.removeprefix(DENOISER_PREFIX)
        if name == key:
            continue
        change = delta(key, tuple(tensor.shape))
        if change.dim() == 1:
            dense[ParamName(name)] = change
            continue
        up, sizes, down = torch.linalg.svd(change.flatten(1), full_matrices=False)
        up = (up * sizes).reshape(*up.shape, *[1] * (change.dim() - 2))
        module = ModuleName(name.removesuffix(".weight"))
        modules[module] = LoraModule(module, down.reshape(-1, *change.shape[1:]).contiguous(), up, len(sizes))
    found = fingerprint(open_checkpoint(base).component())
    metadata = AdapterMetadata(base_fingerprint=found.digest, base_tensors=found.packed())
    return Adapter(modules, dense, metadata, DENOISER_PREFIX)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two small images of different shapes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("a.png", (50, 40)), ("b.jpg", (36, 64))):
        noise = np.random.default_rng(0).integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(folder / name)
    return folder


def run(files: Files, source: Any, output: Path, **changes: Any) -> InferResult:
    """A small fp32 run on the CPU."""
    options: dict[str, Any] = {"base": files.base, "device": "cpu", "torch_dtype": "float", "size": 64, **changes}
    return infer(images=source, output_path=output, **options)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_base_plus_lora_is_the_tuned_model(files: Files, photos: Path, tmp_path: Path) -> None:
    images = {}
    for name, changes in {
        "base": {},
        "fused": {"lora": (files.lora,)},
        "live": {"lora": (files.lora,), "mode": "live"},
        "zero": {"lora": (files.lora,), "lora_scale": (0.0,)},
        "halves": {"lora": (files.lora, files.lora), "lora_scale": (0.25, 0.75)},
        "by layer": {"lora": (files.lora, files.lora), "lora_scale": ("1,mid=0.25,up=0", "0,mid=0.75,up=1")},
        "tuned": {"base": files.tuned},
    }.items():
        result = run(files, photos / "a.png", tmp_path / f"{name}.png", num_inference_steps=2, **changes)
        assert result.outputs[0].output == tmp_path / f"{name}.png"
        images[name] = pixels(tmp_path / f"{name}.png")
    for name in ("fused", "live", "halves", "by layer"):
        assert np.abs(images[name] - images["tuned"]).max() <= 1
    assert np.array_equal(images["zero"], images["base"])
    assert np.abs(images["base"] - images["tuned"]).mean() > 3


def test_a_picture_alone_is_the_image_in_company(files: Files, photos: Path, tmp_path: Path) -> None:
    run(files, f"{photos}/*", tmp_path / "all", num_inference_steps=2)
    run(files, photos / "a.png", tmp_path / "one.png", num_inference_steps=2)
    assert np.array_equal(pixels(tmp_path / "all" / "a.png"), pixels(tmp_path / "one.png"))


def test_comparisons_and_masks_are_guarded_before_the_work(files: Files, photos: Path) -> None:
    Image.new("RGB", (50, 40)).save(photos / "x_compare.png")
    with pytest.raises(OutputError, match=r"x_compare\.png is an input"):
        run(files, photos / "x_compare.png", photos / "x.png", compare=True)
    assert not (photos / "x.png").exists()
    Image.new("L", (50, 40), 255).save(photos / "mask.png")
    with pytest.raises(OutputError, match=r"mask\.png is an input"):
        run(files, photos / "a.png", photos / "mask.png", mask=str(photos / "mask.png"))


def test_side_by_side(files: Files, photos: Path, tmp_path: Path) -> None:
    again = partial(run, files, photos / "a.png", tmp_path / "o.png", lora=(files.lora,), compare=True)
    result = again(tuned=files.tuned)
    assert result.outputs[0].comparison == tmp_path / "o_compare.png"
    grid = Image.open(tmp_path / "o_compare.png")
    factor = 6  # of 50x40 pixels, to at least 256
    tiles = [
        np.asarray(grid.crop((left, grid.height - 8 - 240, left + 300, grid.height - 8)))[::factor, ::factor]
        for left in (8, 316, 624, 932)
    ]
    assert np.array_equal(tiles[0], np.asarray(Image.open(photos / "a.png")))
    assert np.array_equal(tiles[2], np.asarray(Image.open(tmp_path / "o.png")))
    assert np.abs(tiles[2].astype(int) - tiles[3]).max() <= 1
    run(files, photos / "a.png", tmp_path / "base.png")
    assert np.array_equal(tiles[1], np.asarray(Image.open(tmp_path / "base.png")))


def test_a_mask_pastes_back(files: Files, photos: Path, tmp_path: Path) -> None:
    mask = Image.new("L", (50, 40), 0)
    mask.paste(255, (25, 0, 50, 40))
    mask.save(tmp_path / "mask.png")
    run(files, photos / "a.png", tmp_path / "o.png", mask=str(tmp_path / "mask.png"))
    result, source = pixels(tmp_path / "o.png"), pixels(photos / "a.png")
    assert np.array_equal(result[:, :25], source[:, :25])
    assert not np.array_equal(result[:, 25:], source[:, 25:])


def test_another_base_is_refused(files: Files, photos: Path, tmp_path: Path) -> None:
    again = partial(run, files, photos / "a.png", tmp_path / "o.png", lora=(files.lora,))
    with pytest.raises(WrongBaseError, match="was made from another base"):
        again(base=files.tuned)
    assert not (tmp_path / "o.png").exists()
    with pytest.warns(LbmLoraWarning, match="was made from another base"):
        again(base=files.tuned, allow_other_base=True)
    assert (tmp_path / "o.png").exists()


@pytest.mark.parametrize("torch_dtype", ["bf16", "fp16"])
def test_half_precision(files: Files, photos: Path, tmp_path: Path, torch_dtype: str) -> None:
    run(files, photos / "a.png", tmp_path / "full.png")
    result = run(files, photos / "a.png", tmp_path / "half.png", torch_dtype=torch_dtype)
    assert result.dtype == torch_dtype
    assert np.abs(pixels(tmp_path / "full.png") - pixels(tmp_path / "half.png")).mean() < 5


def test_options_reach_the_networks(files: Files, photos: Path, tmp_path: Path) -> None:
    def image(name: str, **changes: Any) -> np.ndarray:
        run(files, photos / "a.png", tmp_path / f"{name}.png", **changes)
        return pixels(tmp_path / f"{name}.png")

    plain = image("plain")
    assert np.array_equal(plain, image("again", seed=7))
    assert not np.array_equal(plain, image("larger", size=96))
    sampled = image("sampled", sample_posterior=True)
    assert not np.array_equal(plain, sampled)
    assert not np.array_equal(sampled, image("other", sample_posterior=True, seed=7))


def test_options_that_cannot_be(files: Files, photos: Path, tmp_path: Path) -> None:
    again = partial(run, files, photos / "a.png", tmp_path / "o.png")
    with pytest.raises(ConfigError, match=r"^tuned is only used with compare\."):
        again(tuned=files.tuned)
    with pytest.raises(ConfigError, match=r"^num_inference_steps must be greater than or equal to 1, got 0"):
        again(num_inference_steps=0)
    assert not (tmp_path / "o.png").exists()


def test_a_missing_base_is_made_from_the_backbone(files: Files, photos: Path, tmp_path: Path) -> None:
    backbone = write_backbone(tmp_path / "backbone", TINY)
    again = partial(run, files, photos / "a.png", tmp_path / "o.png", backbone_signature=str(backbone))
    again(base=tmp_path / "made.safetensors", lora=())
    assert (tmp_path / "made.safetensors").exists()
    assert (tmp_path / "made.ckpt").exists()
    assert (tmp_path / "o.png").exists()


def test_the_source_beside_the_output(files: Files, photos: Path, tmp_path: Path) -> None:
    result = run(files, photos, tmp_path / "out", save_input=True)
    assert [made.source_copy for made in result.outputs] == [
        tmp_path / "out" / "a_input.png",
        tmp_path / "out" / "b_input.jpg",
    ]
    assert np.array_equal(pixels(tmp_path / "out" / "a_input.png"), pixels(photos / "a.png"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a.png", "a_input.png", "b.jpg", "b_input.jpg",
    ]  # fmt: skip
    again = run(files, photos / "b.jpg", tmp_path / "out" / "a.png", save_input=True)
    assert again.outputs[0].source_copy == tmp_path / "out" / "a_input.png"
    assert pixels(tmp_path / "out" / "a_input.png").shape == (64, 36, 3), "a copy of ours follows its output"


def test_a_copy_stays_with_a_result_that_is_kept(files: Files, photos: Path, tmp_path: Path) -> None:
    """The camera counts from 1 again, and the first source is gone."""
    out = tmp_path / "out.png"
    run(files, photos / "a.png", out, save_input=True)
    held = {path: path.read_bytes() for path in tmp_path.glob("out*")}
    run(files, photos / "b.jpg", out, save_input=True, compare=True, skip_existing=True)
    assert {path: path.read_bytes() for path in held} == held
    assert (tmp_path / "out_compare.png").exists()


def test_a_file_in_place_of_the_copy_is_kept(files: Files, photos: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "out_input.jpg"
    theirs.write_bytes((photos / "b.jpg").read_bytes())
    before = theirs.read_bytes()
    with pytest.warns(
        LbmLoraWarning, match=r"out_input\.jpg exists and is not a copy of an input: it is kept, and none"
    ):
        result = run(files, photos / "a.png", tmp_path / "out.jpg", save_input=True)
    assert theirs.read_bytes() == before
    assert result.outputs[0].source_copy is None


def test_a_tuned_model_that_cannot_be_run_is_found_before_a_result_is_written(
    files: Files, photos: Path, tmp_path: Path
) -> None:
    again = partial(run, files, photos, tmp_path / "out", compare=True)
    again()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(files.tuned.read_bytes()[:-8])
    for wrong in (tmp_path / "none.safetensors", cut, files.lora):
        with pytest.raises(InputError):
            again(tuned=wrong, seed=5)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_a_result_appears_with_its_side_by_side_image_or_not_at_all(
    files: Files, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tuned model that makes no image, and a disk that is full by then, leave earlier results."""
    again = partial(run, files, photos / "a.png", tmp_path / "out.png", compare=True, save_input=True)
    again()
    before = {path: path.read_bytes() for path in tmp_path.glob("out*")}
    assert len(before) == 3
    tensors = load_file(files.tuned)
    name = next(name for name in tensors if name.endswith("conv_in.weight"))
    tensors[name].view(-1)[0] = math.nan
    (tmp_path / "nan").mkdir()
    save_file(tensors, tmp_path / "nan" / "nan.safetensors")
    shutil.copy(files.tuned.with_name("config.yaml"), tmp_path / "nan")
    with pytest.raises(ImageError, match="not finite"):
        again(tuned=tmp_path / "nan" / "nan.safetensors", seed=5)
    assert {path: path.read_bytes() for path in tmp_path.glob("out*")} == before
    save = Image.Image.save

    def full(self: Image.Image, path: Path, *args: Any, **settings: Any) -> None:
        if "_compare" in Path(path).name:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, path, *args, **settings)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError, match="No space left on device"):
        again(seed=5)
    assert {path: path.read_bytes() for path in tmp_path.glob("out*")} == before


@pytest.mark.parametrize("extension", ["png", "webp", "bmp", "gif", "tif"])
def test_a_copy_of_any_format_is_known_again(files: Files, photos: Path, tmp_path: Path, extension: str) -> None:
    for source in ("a.png", "b.jpg"):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*256 colours")
            (made,) = run(files, photos / source, tmp_path / f"out.{extension}", save_input=True).outputs
        assert made.source_copy == tmp_path / f"out_input.{extension}"


def test_a_copy_that_is_a_source_now_is_kept(files: Files, photos: Path, tmp_path: Path) -> None:
    run(files, photos / "a.png", tmp_path / "out.jpg", save_input=True)
    copy = tmp_path / "out_input.jpg"
    before = copy.read_bytes()
    run(files, copy, tmp_path / "out.jpg", save_input=True)
    assert copy.read_bytes() == before


@pytest.fixture
def batch(photos: Path) -> Path:
    """The photos, and between them a cut JPEG and a text that is called an image."""
    whole = (photos / "b.jpg").read_bytes()
    (photos / "a_cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "a_text.png").write_text("no image")
    return photos


def test_what_cannot_be_read_is_left_out_and_listed(files: Files, batch: Path, tmp_path: Path) -> None:
    result = run(files, batch, tmp_path / "out", lora=(files.lora,), save_input=True)
    assert [made.source.name for made in result.outputs] == ["a.png", "b.jpg"]
    assert [image.source.name for image in result.failed] == ["a_cut.jpg", "a_text.png"]
    assert "a_cut.jpg cannot be decoded: " in result.failed[0].reason
    assert [str(failure) for failure in result.failures] == ["2 of 4 images failed: a_cut.jpg, a_text.png."]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "a.png", "a_input.png", "b.jpg", "b_input.jpg",
    ]  # fmt: skip
    run(files, batch / "b.jpg", tmp_path / "alone.jpg", lora=(files.lora,))
    assert (tmp_path / "alone.jpg").read_bytes() == (tmp_path / "out" / "b.jpg").read_bytes()


def test_a_mask_that_does_not_fit_fails_its_image_alone(files: Files, photos: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.new("L", (50, 40), 255).save(masks / "a.png")
    Image.new("L", (50, 40), 255).save(masks / "b.mask.png")
    result = run(files, photos, tmp_path / "out", mask=str(masks))
    assert [made.source.name for made in result.outputs] == ["a.png"]
    assert "b.mask.png is 50x40, but its image 36x64: the shapes differ" in result.failed[0].reason


def test_side_by_side_images_go_on_without_what_failed(files: Files, batch: Path, tmp_path: Path) -> None:
    again = partial(run, files, batch, tmp_path / "out", lora=(files.lora,), compare=True, tuned=files.tuned)
    result = again()
    assert [made.comparison for made in result.outputs] == [
        tmp_path / "out" / "a_compare.png",
        tmp_path / "out" / "b_compare.jpg",
    ]
    assert len(result.failed) == 2
    grid = Image.open(tmp_path / "out" / "a_compare.png")
    tile = np.asarray(grid.crop((624, grid.height - 8 - 240, 624 + 300, grid.height - 8)))[::6, ::6]
    assert np.array_equal(tile, np.asarray(Image.open(tmp_path / "out" / "a.png")))


def test_the_first_failure_ends_the_batch_where_that_is_asked_for(files: Files, batch: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ImageError, match=r"a_cut\.jpg cannot be decoded: .* Before that, 1 of 4 images were written\.$"
    ):
        run(files, batch, tmp_path / "out", fail_fast=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_an_image_alone_that_cannot_be_read_is_an_error(files: Files, batch: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a_cut\.jpg cannot be decoded: .* Is the file complete\?$"):
        run(files, batch / "a_cut.jpg", tmp_path / "out.png")


def test_outputs_that_are_there_are_left_out(files: Files, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write_image(Image.new("RGB", (3, 3)), tmp_path / "out" / "a.png", mark=RESULT)
    earlier = (tmp_path / "out" / "a.png").read_bytes()
    result = run(files, photos, tmp_path / "out", skip_existing=True)
    assert ([made.source.name for made in result.outputs], result.present) == (["b.jpg"], 1)
    assert (tmp_path / "out" / "a.png").read_bytes() == earlier
    again = run(files, photos, tmp_path / "out", skip_existing=True)
    assert (again.outputs, again.present, again.device, again.dtype) == ((), 2, "cpu", "fp32")
    compared = run(files, photos, tmp_path / "out", skip_existing=True, compare=True)
    assert len(compared.outputs) == 2, "an output without its side-by-side image is not done"
    assert all(made.comparison is not None and made.comparison.exists() for made in compared.outputs)
    assert (tmp_path / "out" / "a.png").read_bytes() == earlier, "but it stays"
    (tmp_path / "out" / "a.png").write_bytes(b"no image")
    (tmp_path / "out" / "a_compare.png").unlink()
    failed = run(files, photos, tmp_path / "out", skip_existing=True, compare=True, save_input=True)
    assert [(one.source.name, failed.present) for one in failed.failed] == [("a.png", 1)]
    assert not (tmp_path / "out" / "a_input.png").exists(), "of no result"
    assert not (tmp_path / "out" / "a_compare.png").exists()
    with pytest.raises(OutputError, match=r"is an input of this command"):
        run(files, photos, photos, skip_existing=True)


def test_an_image_far_above_the_models_size_is_said_once(files: Files, photos: Path, tmp_path: Path) -> None:
    for name in ("c.png", "d.png"):
        Image.new("RGB", (300, 200)).save(photos / name)
    with pytest.warns(LbmLoraWarning) as said:
        run(files, photos, tmp_path / "out", lora=(files.lora,))
    assert [str(warning.message) for warning in said] == [
        "c.png has 300x200 pixels, and the model works on 80x48: the result is enlarged 4.0 times and lacks fine "
        "detail. A larger size keeps more, in more time (the model is made for 128); or cut the image."
    ]


def test_values_are_translated_as_their_files(files: Files, photos: Path, tmp_path: Path) -> None:
    """A state dict, an adapter and images of PIL, two of them with a mask each; an image's own file is an input."""
    run(files, photos / "a.png", tmp_path / "file.png", lora=files.lora)
    image, adapter = Image.open(photos / "a.png"), load_adapter(files.lora)
    masks = [Image.new("L", (50, 40), 255), Image.new("L", (50, 40), 0)]
    masks[1].paste(255, (0, 0, 25, 40))
    config = files.base.parent / "config.yaml"
    result = run(
        files, [image, image.copy()], tmp_path / "values", base=load_file(files.base), lora=adapter, mask=masks,
        config_path=config,
    )  # fmt: skip
    assert not result.failed
    assert [one.output.name for one in result.outputs] == ["image-1.png", "image-2.png"]
    first, second = (pixels(one.output) for one in result.outputs)
    assert np.array_equal(first, pixels(tmp_path / "file.png"))
    assert np.array_equal(second[:, 25:], pixels(photos / "a.png")[:, 25:])
    with pytest.raises(OutputError, match="is an input of this command and would be overwritten"):
        run(files, image, photos / "a.png", overwrite=True)
