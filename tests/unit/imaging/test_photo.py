"""Photos: stretched as `infer` does it, with the detail and colours of their source."""

import numpy as np
import torch
from PIL import Image

from lbm_lora.imaging.photo import keep_detail, match_color, stretched


def photo(seed: int, height: int = 40, width: int = 48) -> torch.Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def test_stretching_is_that_of_pillow_without_its_rounding() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))
    values = torch.from_numpy(np.array(image)).movedim(-1, 0) / 255
    expected = np.array(image.resize((72, 24), Image.Resampling.LANCZOS))
    made = stretched(values, (72, 24)).movedim(0, -1) * 255
    assert np.abs(made.numpy() - expected).max() <= 1
    assert stretched(values, (48, 40)) is values


def test_a_share_of_0_is_the_result_itself() -> None:
    result = photo(0)
    assert keep_detail(result, photo(1), 0.0) is result
    assert match_color(result, photo(1), 0.0) is result


def test_detail_is_the_sources_and_light_the_results() -> None:
    source = 0.5 + 0.2 * (photo(1, 64, 64)[:1].expand(3, 64, 64) - 0.5)
    light = torch.linspace(0.3, 0.6, 64).expand(3, 64, 64)
    made = keep_detail(light, source, 1.0)
    assert torch.allclose(made.mean(-2), light.mean(-2), atol=0.04)
    inner = (slice(None), slice(8, -8), slice(8, -8))
    detail, before = (made - light)[inner].mean(0).flatten(), source[inner].mean(0).flatten()
    assert float(torch.corrcoef(torch.stack([detail, before]))[0, 1]) > 0.9
    half = keep_detail(light, source, 0.5)
    assert torch.allclose(half - light, (made - light) / 2, atol=1e-6)


def test_detail_of_an_image_smaller_than_the_blur() -> None:
    assert keep_detail(photo(0, 2, 3), photo(1, 2, 3), 1.0).shape == (3, 2, 3)


def test_colours_get_the_mean_and_spread_of_the_source() -> None:
    result, source = 0.4 + 0.1 * photo(0), 0.3 + 0.3 * photo(1)
    made = match_color(result, source, 1.0)
    assert torch.allclose(made.mean((1, 2)), source.mean((1, 2)), atol=1e-5)
    assert torch.allclose(made.std((1, 2)), source.std((1, 2)), atol=1e-5)
    flat = match_color(torch.full((3, 4, 4), 0.5), source[:, :4, :4], 1.0)
    assert torch.isfinite(flat).all()
