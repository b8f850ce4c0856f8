"""Outputs of several variants measured against the tuned model's."""

import json
import math
from dataclasses import asdict

import pytest
import torch

from lbm_lora.errors import ConfigError
from lbm_lora.imaging.metrics import psnr, ssim
from lbm_lora.infer.comparison import VariantOutputs, compare_outputs, relative_error, variant_outputs
from lbm_lora.infer.pipeline import encode_sources, translate
from lbm_lora.model.build import LBMModel, load_model
from standins import TINY, write_base, write_tuned


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LBMModel]:
    """Base and tuned TINY stand-ins in fp32."""
    folder = tmp_path_factory.mktemp("models")
    write_base(folder / "base", TINY, dtype=torch.float32)
    write_tuned(folder / "tuned", TINY, dtype=torch.float32)
    return {name: load_model(folder / name, dtype=torch.float32) for name in ("base", "tuned")}


@pytest.fixture(scope="module")
def pictures() -> list[torch.Tensor]:
    """Two pictures of different sizes, values in [-1, 1]."""
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(1, 3, *size, generator=generator) * 2 - 1 for size in ((64, 64), (48, 80))]


class Counter:
    """A progress that counts."""

    done = 0

    def start(self, total: int, what: str) -> None: ...

    def advance(self, n: int = 1) -> None:
        self.done += n

    def note(self, message: str) -> None: ...


def flat(*values: float) -> VariantOutputs:
    """Outputs of one flat colour for each value."""
    return VariantOutputs(
        predictions=tuple(torch.full((4, 2, 2), 1 + value) for value in values),
        images=tuple(torch.full((3, 16, 16), value) for value in values),
    )


@pytest.mark.parametrize("steps", [1, 2])
def test_outputs_are_those_of_the_pipeline(
    models: dict[str, LBMModel], pictures: list[torch.Tensor], steps: int
) -> None:
    model = models["base"]
    latents = [encode_sources(model, picture) for picture in pictures]
    counter = Counter()
    outputs = variant_outputs(model, latents, steps=steps, seed=4, progress=counter)
    assert counter.done == 2
    for index, picture in enumerate(pictures):
        assert torch.equal(outputs.images[index], translate(model, picture, steps=steps, seed=4)[0])
        with torch.no_grad():
            first = model.denoise(latents[index], torch.tensor([1000.0]))[0]
        assert torch.equal(outputs.predictions[index], first)


def test_the_scores_are_those_of_the_pictures(models: dict[str, LBMModel], pictures: list[torch.Tensor]) -> None:
    latents = [encode_sources(models["base"], picture) for picture in pictures]
    outputs = {name: variant_outputs(model, latents) for name, model in models.items()}
    outputs = {"base": outputs["base"], "base+LoRA": outputs["tuned"], "tuned": outputs["tuned"]}
    mask = torch.zeros(64, 64)
    mask[20:40, 20:40] = 1
    report = compare_outputs(outputs, names=["a.png", "b.png"], masks=[mask, None], dtype=torch.bfloat16)
    assert (report.reference, report.dtype, report.device) == ("tuned", "bf16", "cpu")
    assert [(i.image, i.width, i.height) for i in report.images] == [("a.png", 64, 64), ("b.png", 80, 48)]
    base, lora = report.images[0].scores
    assert (base.variant, lora.variant) == ("base", "base+LoRA")
    one, other = outputs["base"].images[0], outputs["tuned"].images[0]
    assert base.psnr == psnr(one, other)
    assert base.ssim == ssim(one, other)
    assert base.mask_psnr == psnr(one, other, mask)
    assert base.mask_ssim == ssim(one, other, mask)
    assert 0 < float(base.denoiser_error) < 10
    assert (lora.psnr, lora.denoiser_error) == ("inf", 0.0)
    assert report.images[1].scores[0].mask_psnr is None


def test_mean_and_worst() -> None:
    outputs = {"base": flat(0.2, 0.02, 0.0), "tuned": flat(0.0, 0.0, 0.0)}
    report = compare_outputs(outputs, names=["a", "b", "c"])
    (base,) = report.summary
    assert float(base.mean_psnr) == pytest.approx(30.0, abs=1e-4)
    assert float(base.worst_psnr) == pytest.approx(20.0, abs=1e-4)
    assert (base.worst_image, base.equal_images) == ("a", 1)
    assert float(base.mean_denoiser_error) == pytest.approx(0.22 / 3, abs=1e-6)
    assert float(base.worst_denoiser_error) == pytest.approx(0.2, abs=1e-6)


def test_the_report_is_json() -> None:
    outputs = {"base": flat(0.1), "same": flat(0.0), "tuned": flat(0.0)}
    report = compare_outputs(outputs, names=["a"], steps=2, seed=9)
    text = json.dumps(asdict(report), allow_nan=False)
    back = json.loads(text)
    assert back["images"][0]["scores"][1]["psnr"] == "inf"
    assert back["summary"][1]["mean_psnr"] == "inf"
    assert float(back["summary"][1]["mean_psnr"]) == math.inf
    assert (back["steps"], back["seed"]) == (2, 9)


def test_nothing_to_compare_is_said() -> None:
    with pytest.raises(ConfigError, match="nothing to compare: 0 pictures of base, tuned"):
        compare_outputs({"base": flat(), "tuned": flat()}, names=[])
    with pytest.raises(ConfigError, match=r"1 pictures of base, reference tuned\."):
        compare_outputs({"base": flat(0.0)}, names=["a"])


def test_relative_error() -> None:
    wanted = torch.tensor([3.0, 4.0])
    assert relative_error(wanted, wanted) == 0
    assert relative_error(torch.tensor([3.0, 4.5]), wanted) == pytest.approx(0.1)
    assert relative_error(wanted, torch.zeros(2)) == math.inf
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0
