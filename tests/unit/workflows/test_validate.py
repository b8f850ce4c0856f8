"""The workflow `validate`: numbers, files and gates."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from lbm_lora.adapter import Adapter, load_adapter, save_adapter
from lbm_lora.checkpoint import Component
from lbm_lora.cli.main import parse
from lbm_lora.configs.extract import ExtractConfig
from lbm_lora.configs.validate import ValidateConfig
from lbm_lora.configs.values import AlphaIs
from lbm_lora.errors import AdapterError, ConfigError, ImageError, QualityError, WrongBaseError
from lbm_lora.naming import ParamName, module_of
from lbm_lora.progress import LbmLoraWarning, Silent
from lbm_lora.regular_file import file_digest
from lbm_lora.workflows import extract, validate
from lbm_lora.workflows.validate import run
from lbm_lora.workflows.validate_files import report_folder, with_report
from standins import TINY, Lbm, write_base, write_tuned


@pytest.fixture(scope="module")
def extracted(lbm: Lbm, tmp_path_factory: pytest.TempPathFactory) -> extract.ExtractResult:
    return extract.run(
        ExtractConfig(
            base_model_path=lbm.base,
            tuned_model_path=lbm.tuned,
            save_to=tmp_path_factory.mktemp("lora") / "l.safetensors",
            rank=4,
            conv_rank=4,
        )
    )


@pytest.fixture
def config(lbm: Lbm, extracted: extract.ExtractResult, tmp_path: Path) -> ValidateConfig:
    return ValidateConfig(
        base_model_path=lbm.base, tuned_model_path=lbm.tuned, lora_path=extracted.adapter, report=tmp_path / "report"
    )


def test_it_measures_what_extraction_measured(config: ValidateConfig, extracted: extract.ExtractResult) -> None:
    weights = run(config).report.weights
    assert weights.relative_error == pytest.approx(extracted.report.relative_error, rel=1e-6)
    assert weights.counts == extracted.report.counts
    assert weights.noise_floor == pytest.approx(extracted.report.noise_floor, rel=1e-9)


def test_numbers_against_numpy(config: ValidateConfig, lbm: Lbm) -> None:
    weights = run(config).report.weights
    before, after = load_file(lbm.base), load_file(lbm.tuned)
    lora = load_file(config.lora_path)
    name = "mid_block.attentions.0.proj_in"
    delta = after[f"denoiser.{name}.weight"].double().numpy() - before[f"denoiser.{name}.weight"].double().numpy()
    up, down = (lora[f"denoiser.{name}.lora_{side}.weight"].double().numpy() for side in ("up", "down"))
    error = delta - up @ down
    row = next(row for row in weights.rows if row.name == f"{name}.weight")
    assert row.relative_error == pytest.approx(np.linalg.norm(error) / np.linalg.norm(delta), rel=1e-5)
    assert row.mean_error == pytest.approx(np.abs(error).mean(), rel=1e-5)
    assert row.relative_mean_error == pytest.approx(np.abs(error).mean() / np.abs(delta).mean(), rel=1e-5)


def test_a_lora_of_sdxl_is_measured_by_what_makes_sense(
    config: ValidateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its text's keys and values count as missing. It is read with the base, which some foreign files need."""
    bases: list[Path] = []

    def reading(source: Path, alpha_is: AlphaIs, *, base: Component) -> Adapter:
        bases.append(base.path)
        return load_adapter(source, alpha_is, base=base)

    monkeypatch.setattr(validate, "load_adapter", reading)
    given = load_adapter(config.lora_path)
    names = [name for name in given.modules if name.endswith(("attn2.to_k", "attn2.to_v"))]
    wide = {name: dataclasses.replace(given.modules[name], down=widened(given.modules[name].down)) for name in names}
    save_adapter(dataclasses.replace(given, modules={**given.modules, **wide}), tmp_path / "sdxl.safetensors")
    with pytest.warns(LbmLoraWarning, match=f"Left out: {len(names)} deltas of attn2"):
        rows = run(dataclasses.replace(config, lora_path=tmp_path / "sdxl.safetensors")).report.weights.rows
    assert bases == [config.base_model_path]
    for row in rows:
        assert (row.relative_error == pytest.approx(1)) == (module_of(ParamName(row.name)) in names)


def widened(down: torch.Tensor) -> torch.Tensor:
    return torch.cat([down, torch.ones_like(down)], dim=1)


def test_the_files(config: ValidateConfig) -> None:
    result = run(config)
    assert [path.name for path in result.files] == ["report.txt", "report.json", "report.html"]
    assert all(path.stat().st_size > 1000 for path in result.files)
    assert json.loads(result.files[1].read_text(encoding="utf-8"))
    names = result.layer_names.read_text(encoding="utf-8").splitlines()
    assert names[2] == ""
    assert len(names) - 3 == result.report.weights.matched
    assert "denoiser.conv_in" in names


def test_the_digest_is_that_of_the_lora_that_was_measured(config: ValidateConfig, tmp_path: Path) -> None:
    lora = tmp_path / "l.safetensors"
    shutil.copy(config.lora_path, lora)
    measured = file_digest(lora)

    class Replacing(Silent):
        def start(self, total: int, what: str) -> None:
            (tmp_path / "another").write_bytes(b"another one by now")
            (tmp_path / "another").replace(lora)

    result = run(dataclasses.replace(config, lora_path=lora, report=tmp_path / "r"), Replacing())
    assert json.loads(result.files[1].read_text())["provenance"]["digests"] == {"LoRA": measured}


def test_alpha_as_asked_for(config: ValidateConfig, tmp_path: Path) -> None:
    """A file of full rank as the earlier implementation writes it, without its metadata."""
    path = tmp_path / "full.safetensors"
    asked = ExtractConfig(
        base_model_path=config.base_model_path,
        tuned_model_path=config.tuned_model_path,
        save_to=path,
        rank=9999,
        conv_rank=9999,
    )
    expected = extract.run(asked).report.relative_error
    tensors = load_file(path)
    alphas = {key: torch.tensor(9999.0).bfloat16() for key in tensors if key.endswith(".alpha")}
    save_file(tensors | alphas, path)
    with pytest.warns(UserWarning, match=r"all of them at the highest rank|does not say which base"):
        auto = run(dataclasses.replace(config, lora_path=path)).report.weights.relative_error
    with pytest.warns(UserWarning, match="does not say which base"):
        file = run(dataclasses.replace(config, lora_path=path, lora_alpha_is="file")).report.weights.relative_error
    assert auto == pytest.approx(expected, rel=1e-6)
    assert file > 10


def test_names_that_the_lora_lacks_are_comments(lbm: Lbm, config: ValidateConfig, tmp_path: Path) -> None:
    """Training refuses a pattern that matches nothing of the LoRA, so no line may offer one."""
    attention = extract.run(
        ExtractConfig(
            base_model_path=lbm.base,
            tuned_model_path=lbm.tuned,
            save_to=tmp_path / "attention.safetensors",
            target_coverage="attention",
        )
    )
    tensors = load_file(attention.adapter) | {"denoiser.conv_in.diff": load_file(lbm.base)["denoiser.conv_in.weight"]}
    header = load_adapter(attention.adapter).metadata.to_header()
    save_file(tensors, tmp_path / "attention.safetensors", metadata=header)
    result = run(dataclasses.replace(config, lora_path=attention.adapter))
    lines = result.layer_names.read_text(encoding="utf-8").splitlines()
    every = len(lines) - 3
    names = [line for line in lines[3:] if not line.startswith("#")]
    assert lines[0] == (
        f"# The {every} layers of model.safetensors that a LoRA can hold. Comments: {every - len(names)} that "
        "attention.safetensors lacks."
    )
    assert lines[1].startswith("# Copy names")
    assert lines[2] == ""
    assert names == sorted(f"denoiser.{name}" for name in load_adapter(attention.adapter).modules)
    assert 0 < len(names) < every
    assert "# denoiser.conv_in: dense in this LoRA" in lines
    assert "# denoiser.conv_out: not in this LoRA" in lines
    again = run(dataclasses.replace(config, lora_path=attention.adapter))
    assert again.layer_names.read_text(encoding="utf-8").splitlines() == lines, "it replaces its own list"


def test_a_folder_of_peft_has_a_report_of_its_own(config: ValidateConfig, tmp_path: Path) -> None:
    """Not that of the file next to it, nor that of another folder with a dot in its name."""
    for name in ("x.peft", "relight.v1", "relight.v2"):
        (tmp_path / name).mkdir()
        given = dataclasses.replace(config, lora_path=tmp_path / name, report=None)
        assert report_folder(given) == tmp_path / f"{name}_report"
    chosen = with_report(dataclasses.replace(config, lora_path=tmp_path / "x.peft", report=None))
    (tmp_path / "x.peft").rmdir()  # moved away while it is measured
    assert report_folder(chosen) == tmp_path / "x.peft_report"
    given = dataclasses.replace(config, lora_path=tmp_path / "relight.v1.safetensors", report=None)
    assert report_folder(given) == tmp_path / "relight.v1_report"


@pytest.fixture
def image(tmp_path: Path) -> str:
    """Path of an image of noise."""
    values = np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def test_images_are_compared_on_equal_latents(config: ValidateConfig, image: str) -> None:
    result = run(dataclasses.replace(config, images=image, size=64, fail_below_psnr=0.0))
    assert result.report.outputs is not None
    assert result.report.outputs.steps == (1, 2, 4)
    scores = {(entry.variant, entry.steps): float(entry.worst_psnr) for entry in result.report.outputs.summary}
    assert all(scores["base + LoRA", steps] > scores["base", steps] for steps in (1, 2, 4))
    assert result.files[-1].name == "comparison.png"
    page = result.files[2].read_text(encoding="utf-8")
    for view in ("source", "base", "base + LoRA", "tuned"):
        assert f'alt="{view}, a.png"' in page
    assert result.failures == ()


def test_the_gate_takes_the_worst_number_of_steps(config: ValidateConfig, image: str) -> None:
    asked = dataclasses.replace(config, images=image, size=64, num_inference_steps=(1, 2), fail_below_psnr=500.0)
    result = run(asked)
    assert result.report.outputs is not None
    lora = {e.steps: float(e.worst_psnr) for e in result.report.outputs.summary if e.variant == "base + LoRA"}
    steps = min(lora, key=lambda count: lora[count])
    assert [str(failure) for failure in result.failures] == [
        f"a.png: {lora[steps]:.2f} dB to the tuned model's image at {steps} step{'s' if steps > 1 else ''}, below "
        "fail_below_psnr 500."
    ]


def test_other_loras_are_measured_beside_it(config: ValidateConfig, lbm: Lbm, image: str, tmp_path: Path) -> None:
    small = extract.run(
        ExtractConfig(
            base_model_path=lbm.base,
            tuned_model_path=lbm.tuned,
            save_to=tmp_path / "small.safetensors",
            rank=1,
            conv_rank=1,
        )
    )
    result = run(
        dataclasses.replace(config, images=image, size=64, num_inference_steps=(1,), other_lora_path=(small.adapter,))
    )
    assert result.report.outputs is not None
    worst = {entry.variant: float(entry.worst_psnr) for entry in result.report.outputs.summary}
    assert worst["base"] < worst["small"] < worst["base + LoRA"]
    assert [(f.variant, f.file) for f in result.report.outputs.loras] == [
        ("base + LoRA", "l.safetensors"),
        ("small", "small.safetensors"),
    ]
    assert "outputs-bytes" in result.files[2].read_text(encoding="utf-8")


def test_another_lora_must_fit_the_base_too(config: ValidateConfig, image: str, tmp_path: Path) -> None:
    base, tuned = (write(tmp_path / name, TINY, seed=1) for name, write in (("b", write_base), ("t", write_tuned)))
    foreign = extract.run(
        ExtractConfig(base_model_path=base, tuned_model_path=tuned, save_to=tmp_path / "f.safetensors", rank=1)
    )
    with pytest.raises(WrongBaseError, match=r"f\.safetensors was made from another base"):
        run(dataclasses.replace(config, images=image, other_lora_path=(foreign.adapter,)))


def test_images_are_looked_for_before_the_checkpoints_are_read(config: ValidateConfig, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(ImageError, match="nowhere does not exist"):
        run(dataclasses.replace(config, images=str(nowhere), base_model_path=tmp_path / "gone.ckpt"))


@pytest.mark.parametrize(
    ("flag", "value"),
    [("fail_below_psnr", 30.0), ("other_lora_path", (Path("l"),)), ("lpips_weights", Path("w")), ("lpips_net", "vgg")],
)
def test_what_is_about_images_needs_images(config: ValidateConfig, flag: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{flag} needs images. Add images, or omit it.$"):
        run(dataclasses.replace(config, **{flag: value}))


@pytest.mark.parametrize("names", [("a/x.safetensors", "b/x.safetensors"), ("tuned.safetensors",)])
def test_loras_are_told_apart_by_their_names(config: ValidateConfig, image: str, names: tuple[str, ...]) -> None:
    paths = tuple(map(Path, names))
    with pytest.raises(ConfigError, match="which must differ"):
        run(dataclasses.replace(config, images=image, other_lora_path=paths))


@pytest.mark.parametrize("words", ["1", "1 2 4"])
def test_one_number_of_steps_or_several(words: str) -> None:
    flags = f"--base_model_path b --tuned_model_path t --lora_path l --images i --num_inference_steps {words}"
    config, _ = parse("validate", [*flags.split(), "--lpips_weights", "w.safetensors"])
    assert config.num_inference_steps == tuple(map(int, words.split()))
    assert config.lpips_weights == Path("w.safetensors")


def test_the_gate(config: ValidateConfig) -> None:
    error = run(config).report.weights.relative_error
    run(dataclasses.replace(config, fail_above=error * 1.001)).raise_for_quality()
    failed = run(dataclasses.replace(config, fail_above=error * 0.999))
    with pytest.raises(QualityError, match="above fail_above"):
        failed.raise_for_quality()


def test_keys_that_match_nothing_count_as_failed(config: ValidateConfig, tmp_path: Path) -> None:
    tensors = load_file(config.lora_path)
    for side in ("up", "down"):
        tensors[f"denoiser.nowhere.lora_{side}.weight"] = tensors[f"denoiser.conv_out.lora_{side}.weight"].clone()
    save_file(tensors, tmp_path / "odd.safetensors")
    odd = dataclasses.replace(config, lora_path=tmp_path / "odd.safetensors")
    with pytest.raises(AdapterError, match=r"nowhere\.weight"):
        run(odd)
    with pytest.warns(UserWarning, match="cannot be checked"):
        weights = run(dataclasses.replace(odd, allow_unmatched=True)).report.weights
    assert weights.failed == ("nowhere.weight",)
    assert weights.success_rate == weights.matched / (weights.matched + 1)


def test_layers_left_out_of_the_file_count_in_the_total(config: ValidateConfig, tmp_path: Path) -> None:
    tensors = load_file(config.lora_path)
    kept = {key: tensor for key, tensor in tensors.items() if "attn" in key}
    save_file(kept, tmp_path / "part.safetensors")
    with pytest.warns(UserWarning, match="cannot be checked"):
        weights = run(dataclasses.replace(config, lora_path=tmp_path / "part.safetensors")).report.weights
    assert weights.counts["excluded"] > 0
    assert weights.left_out_share > 0.1
    assert weights.relative_error**2 >= weights.left_out_share * 0.999
