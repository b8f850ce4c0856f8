"""`validate`: numbers, files and limits, of files and of values."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lbm_lora.adapter import load_adapter, save_adapter
from lbm_lora.errors import AdapterError, ConfigError, ImageError, OutputError, QualityError, WrongBaseError
from lbm_lora.files import file_digest
from lbm_lora.naming import ParamName, module_of
from lbm_lora.progress import LbmLoraWarning
from lbm_lora.report import Report
from lbm_lora.verbs.adapters import MeasuredAdapter
from lbm_lora.verbs.extract import extract
from lbm_lora.verbs.validate import ValidateResult, validate
from lbm_lora.verbs.verb import with_result
from standins import TINY, Lbm, write_base, write_tuned

Run = Callable[..., Report]
FAST: dict[str, Any] = {"size": 64, "device": "cpu", "num_inference_steps": 1}


@pytest.fixture(scope="module")
def lora(lbm: Lbm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "l.safetensors"
    extract(lbm.base, lbm.tuned, save_to=path, rank=4, conv_rank=4)
    return path


@pytest.fixture
def run(lbm: Lbm, lora: Path) -> Run:
    """`run(lora, images=...)`: the report on a LoRA, by default the one above."""
    return lambda one=lora, **options: validate(lbm.base, lbm.tuned, one, **options)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8))


def test_numbers_against_numpy(run: Run, lbm: Lbm, lora: Path) -> None:
    weights = run().weights
    before, after, factors = load_file(lbm.base), load_file(lbm.tuned), load_file(lora)
    name = "mid_block.attentions.0.proj_in"
    delta = after[f"denoiser.{name}.weight"].double().numpy() - before[f"denoiser.{name}.weight"].double().numpy()
    up, down = (factors[f"denoiser.{name}.lora_{side}.weight"].double().numpy() for side in ("up", "down"))
    error = delta - up @ down
    row = next(row for row in weights.rows if row.name == f"{name}.weight")
    assert row.relative_error == pytest.approx(np.linalg.norm(error) / np.linalg.norm(delta), rel=1e-5)
    assert row.relative_mean_error == pytest.approx(np.abs(error).mean() / np.abs(delta).mean(), rel=1e-5)


def test_values_give_what_files_give_and_nothing_is_written_unasked(
    run: Run, lbm: Lbm, image: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image.save(tmp_path / "image-1.png")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    made = extract(lbm.base, lbm.tuned, rank=4, conv_rank=4)
    states, config_path = (load_file(lbm.base), load_file(lbm.tuned)), lbm.tuned.parent / "config.yaml"
    found = validate(*states, made, images=image, config_path=config_path, **FAST)
    wanted = run(images=tmp_path / "image-1.png", **FAST)
    assert found.weights.rows == wanted.weights.rows
    assert found.weights.relative_error == pytest.approx(made.report.relative_error, rel=1e-6)
    assert found.outputs is not None
    assert wanted.outputs is not None
    assert found.outputs.summary == wanted.outputs.summary
    assert (found.weights.base, found.weights.tuned) == ("base state dict", "tuned state dict")
    assert list(Path().iterdir()) == []


def test_a_lora_of_sdxl_is_measured_by_what_makes_sense(run: Run, lora: Path, tmp_path: Path) -> None:
    """Its text's keys and values count as missing."""
    given = load_adapter(lora)
    names = [name for name in given.modules if name.endswith(("attn2.to_k", "attn2.to_v"))]
    wide = {name: dataclasses.replace(given.modules[name], down=_widened(given.modules[name].down)) for name in names}
    save_adapter(dataclasses.replace(given, modules={**given.modules, **wide}), tmp_path / "sdxl.safetensors")
    with pytest.warns(LbmLoraWarning, match=f"Left out: {len(names)} deltas of attn2"):
        rows = run(tmp_path / "sdxl.safetensors").weights.rows
    for row in rows:
        assert (row.relative_error == pytest.approx(1)) == (module_of(ParamName(row.name)) in names)


def _widened(down: torch.Tensor) -> torch.Tensor:
    return torch.cat([down, torch.ones_like(down)], dim=1)


def test_alpha_as_asked_for(run: Run, lbm: Lbm, tmp_path: Path) -> None:
    """A file of full rank as the earlier implementation writes it, without its metadata."""
    path = tmp_path / "full.safetensors"
    expected = extract(lbm.base, lbm.tuned, save_to=path, rank=9999, conv_rank=9999).report.relative_error
    tensors = load_file(path)
    alphas = {key: torch.tensor(9999.0).bfloat16() for key in tensors if key.endswith(".alpha")}
    save_file(tensors | alphas, path)
    with pytest.warns(UserWarning, match=r"all of them at the highest rank|does not say which base"):
        assert run(path).weights.relative_error == pytest.approx(expected, rel=1e-6)
    with pytest.warns(UserWarning, match="does not say which base"):
        assert run(path, lora_alpha_is="file").weights.relative_error > 10


def test_names_that_the_lora_lacks_are_comments(run: Run, lbm: Lbm, tmp_path: Path) -> None:
    """Training refuses a pattern that matches nothing of the LoRA, so no line may offer one."""
    path, listed = tmp_path / "attention.safetensors", tmp_path / "names.txt"
    made = extract(lbm.base, lbm.tuned, save_to=path, target_coverage="attention")
    tensors = load_file(path) | {"denoiser.conv_in.diff": load_file(lbm.base)["denoiser.conv_in.weight"]}
    save_file(tensors, path, metadata=made.metadata.to_header())
    for _ in range(2):  # it replaces its own list
        run(path, layer_names=listed)
    lines = listed.read_text(encoding="utf-8").splitlines()
    names = [line for line in lines[3:] if not line.startswith("#")]
    every = len(lines) - 3
    assert lines[0] == (
        f"# The {every} layers of model.safetensors that a LoRA can hold. Comments: {every - len(names)} that "
        "attention.safetensors lacks."
    )
    assert names == sorted(f"denoiser.{name}" for name in made.modules)
    assert 0 < len(names) < every
    assert "# denoiser.conv_in: dense in this LoRA" in lines
    assert "# denoiser.conv_out: not in this LoRA" in lines
    listed.write_text("my own list")
    with pytest.raises(OutputError, match=r"names\.txt exists"):
        run(path, layer_names=listed)


@pytest.mark.parametrize("name", ["relight.v1.safetensors", "relight.v1.peft"])
def test_the_command_writes_the_report_next_to_the_lora(lbm: Lbm, lora: Path, tmp_path: Path, name: str) -> None:
    """That of a folder of PEFT has its whole name: the file next to it has a report of its own."""
    path = tmp_path / name
    modules = dataclasses.replace(load_adapter(lora), dense={})
    modules.save(path, "peft" if name.endswith("peft") else "native")
    result: ValidateResult = with_result(validate)(lbm.base, lbm.tuned, path, report="")[1]
    assert {one.parent for one in (*result.files, result.layer_names)} == {
        tmp_path / f"{name.removesuffix('.safetensors')}_report"
    }


def test_other_loras_are_measured_beside_it(run: Run, lbm: Lbm, image: Image.Image, tmp_path: Path) -> None:
    small = extract(lbm.base, lbm.tuned, save_to=tmp_path / "small.safetensors", rank=1, conv_rank=1)
    folder = tmp_path / "r"
    report = run(images=[image], other_lora_path=small, report=folder, fail_below_psnr=0.0, **FAST)
    assert report.outputs is not None
    worst = {entry.variant: float(entry.worst_psnr) for entry in report.outputs.summary}
    assert worst["base"] < worst["small"] < worst["base + LoRA"]
    assert [(one.variant, one.file) for one in report.outputs.loras] == [
        ("base + LoRA", "l.safetensors"),
        ("small", "small.safetensors"),
    ]
    names = {"report.txt", "report.json", "report.html", "comparison.png", "lora_layer_names.txt"}
    assert {path.name for path in folder.iterdir()} == names
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "outputs-bytes" in page
    assert 'alt="base + LoRA, image-1.png"' in page


def test_a_part_of_a_lora_has_not_the_digest_of_its_file(run: Run, lora: Path, tmp_path: Path) -> None:
    whole = load_adapter(lora)
    digests: list[object] = []
    for adapter in (lora, whole, whole.filtered(lambda name: "mid_block" in name)):
        run(adapter, report=tmp_path / "r")
        digests.append(json.loads((tmp_path / "r" / "report.json").read_text())["provenance"]["digests"])
    assert digests == [{"LoRA": file_digest(lora)}, {"LoRA": file_digest(lora)}, {}]


def test_another_lora_must_fit_the_base_too(run: Run, image: Image.Image, tmp_path: Path) -> None:
    base, tuned = (write(tmp_path / name, TINY, seed=1) for name, write in (("b", write_base), ("t", write_tuned)))
    foreign: MeasuredAdapter = extract(base, tuned, save_to=tmp_path / "f.safetensors", rank=1)
    with pytest.raises(WrongBaseError, match=r"f\.safetensors was made from another base"):
        run(images=image, other_lora_path=foreign)


def test_images_are_looked_for_before_the_checkpoints_are_read(lora: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="nowhere does not exist"):
        validate(tmp_path / "gone.ckpt", tmp_path / "gone.ckpt", lora, images=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("option", "value"),
    [("fail_below_psnr", 30.0), ("other_lora_path", "l.safetensors"), ("lpips_weights", "w"), ("lpips_net", "vgg")],
)
def test_what_is_about_images_needs_images(run: Run, option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{option} needs images. Add images, or omit it.$"):
        run(**{option: value})


@pytest.mark.parametrize("names", [("a/x.safetensors", "b/x.safetensors"), ("tuned.safetensors",)])
def test_loras_are_told_apart_by_their_names(run: Run, image: Image.Image, names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="which must differ"):
        run(images=image, other_lora_path=names)


def test_limits(run: Run, image: Image.Image) -> None:
    error = run().weights.relative_error
    run(fail_above=error * 1.001)
    with pytest.raises(QualityError, match=rf"^The total relative error is {error:.4f}, above fail_above "):
        run(fail_above=error * 0.999)
    with pytest.raises(QualityError, match=r"^image-1\.png: [\d.]+ dB to the tuned model's image at 1 step, below "):
        run(images=[image], fail_below_psnr=500, **FAST)


def test_keys_that_match_nothing_count_as_failed(run: Run, lora: Path, tmp_path: Path) -> None:
    tensors, odd = load_file(lora), tmp_path / "odd.safetensors"
    for side in ("up", "down"):
        tensors[f"denoiser.nowhere.lora_{side}.weight"] = tensors[f"denoiser.conv_out.lora_{side}.weight"].clone()
    save_file(tensors, odd)
    with pytest.raises(AdapterError, match=r"nowhere\.weight"):
        run(odd)
    with pytest.warns(UserWarning, match="cannot be checked"):
        weights = run(odd, allow_unmatched=True).weights
    assert weights.failed == ("nowhere.weight",)
    assert weights.success_rate == weights.matched / (weights.matched + 1)


def test_layers_left_out_of_the_file_count_in_the_total(run: Run, lora: Path, tmp_path: Path) -> None:
    kept = {key: tensor for key, tensor in load_file(lora).items() if "attn" in key}
    save_file(kept, tmp_path / "part.safetensors")
    with pytest.warns(UserWarning, match="cannot be checked"):
        weights = run(tmp_path / "part.safetensors").weights
    assert weights.counts["excluded"] > 0
    assert weights.left_out_share > 0.1
    assert weights.relative_error**2 >= weights.left_out_share * 0.999
