"""Format values: one spelling of numbers, shapes, names and verdicts, for the text, the page and the terminal."""

import math

from lbm_lora.errors import plural as plural  # messages of all layers count things, and so do reports
from lbm_lora.fidelity.weights import BANDS, band_of

NOTHING = "-"
"""Placeholder for a missing value."""


def percent(share: float) -> str:
    """0.1234 -> `12.3 %`, 0.0123 -> `1.23 %`, 0.0000012 -> `1.2e-04 %`, 0 -> `0 %`, infinity -> `inf`."""
    if math.isnan(share):
        return NOTHING
    if math.isinf(share):
        return "inf"
    value = 100 * share
    amount = abs(value)
    if amount == 0:
        return "0 %"
    if amount < 0.005:
        return f"{value:.1e} %"
    return f"{value:.2f} %" if amount < 9.995 else f"{value:.1f} %" if amount < 1000 else f"{value:,.0f} %"


def share(part: float) -> str:
    """As `percent`, of parts: what is too small to matter is `< 0.01 %`."""
    return "< 0.01 %" if 0 < part < 0.00005 else percent(part)


def decibel(value: float | None) -> str:
    """41.017 -> `41.02`; equal images have infinitely many: `equal`; `-` where nothing was measured."""
    if value is None:
        return NOTHING
    return "equal" if value == math.inf else f"{value:.2f}"


def similarity(value: float | None) -> str:
    """An SSIM with four decimals, cut and not rounded: only equal images have 1."""
    if value is None:
        return NOTHING
    return f"{math.floor(value * 1e4) / 1e4:.4f}" if math.isfinite(value) else str(value)


def distance(value: float | None) -> str:
    """An LPIPS: `0.1234`, `3.1e-05` where that would be 0.0000, and `0` for equal images alone."""
    if value is None:
        return NOTHING
    return "0" if value == 0 else f"{value:.1e}" if 0 < value < 5e-5 else f"{value:.4f}"


def megabytes(nbytes: int) -> str:
    """12345678 -> `12.35 MB`, 12345 -> `12.3 kB`: decimal units, as file managers have them."""
    return f"{nbytes / 1e6:,.2f} MB" if nbytes >= 100_000 else f"{nbytes / 1e3:,.1f} kB"


def dimensions(shape: tuple[int, ...]) -> str:
    """(64, 32, 3, 3) -> `64x32x3x3`; a scalar is `scalar`."""
    return "x".join(map(str, shape)) or "scalar"


def printable(text: str) -> str:
    """Text with every control and formatting character spelt out: a name from a file cannot steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shortened(text: str, width: int) -> str:
    """Shorten to `width` by cutting the middle: names differ at their ends."""
    if len(text) <= width:
        return text
    head = (width - 3) // 3
    return f"{text[:head]}...{text[len(text) - (width - 3 - head) :]}"


OF_WEIGHTS_ALONE = (
    "This LoRA was made for the denoiser's output: it spends its bytes where the output depends on them, so the error "
    "of the weights says little about it."
)
OF_ALL_WEIGHTS_ALIKE = "The error of the weights counts every change alike, whether the image depends on it or not."


def weights_verdict(relative_error: float, *, made_for_output: bool) -> str:
    """`GOOD (5 to 50 %, minor artifacts)`: the documented band of an error, unless a LoRA was made for the output."""
    if made_for_output:
        return "not the measure of this LoRA"
    band = band_of(relative_error)
    return f"{band.upper()} ({next(meaning for name, _, meaning in BANDS if name == band)})"


def levels(psnr: float) -> str:
    """Return the meaning of a PSNR in an 8-bit image: `0.36 of 255 levels` of mean squared difference, as its root."""
    return "equal" if psnr == math.inf else f"{255 * 10 ** (-psnr / 20):.2g} of 255 levels"


def error_meaning(relative_error: float) -> str:
    """Explain a total relative error in one sentence."""
    if relative_error == 0:
        return "The adapter reproduces the fine-tune's change exactly."
    if math.isinf(relative_error):
        return "The adapter holds values that are not finite, or a change where the fine-tune made none."
    if relative_error >= 1:
        return "The adapter is further from the fine-tune than the base itself: it holds more noise than signal."
    kept = 1 - relative_error**2
    spelt = "more than 99.99 %" if kept > 0.9999 else f"{100 * kept:.2f} %" if kept > 0.99 else percent(kept)
    return f"It keeps {spelt} of the energy (the squared norm) of the fine-tune's change."


def noise_meaning(relative_error: float, noise_floor: float) -> str:
    """Explain the noise floor next to the error in one sentence."""
    if noise_floor == 0:
        return "The tuned checkpoint is not stored in half precision, so no part of the change is rounding."
    text = "So much of the change is rounding of the tuned checkpoint's half precision, which no method can tell apart"
    if math.isfinite(relative_error) and relative_error < noise_floor:
        return f"{text}; the error is below it."
    return f"{text}."
