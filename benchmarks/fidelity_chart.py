"""A still picture of size against fidelity: SVG, on paper white so that it reads in light and dark pages alike."""

import math
from collections.abc import Mapping, Sequence

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 34, 48
_COLORS = ("#6b7280", "#b45309", "#1d4ed8", "#15803d", "#9d174d")
_STEP = 20  # dB between two lines of the grid
_MEGABYTES = (0.3, 0.5, 1, 2, 3, 5, 10, 20)


def chart(series: Mapping[str, Points]) -> str:
    """Lines of (bytes, dB) points by name: bytes on a logarithmic axis, in MB.

    Raises:
        ValueError: more series than there are colours.
    """
    if len(series) > len(_COLORS):
        raise ValueError(f"{len(series)} series, and {len(_COLORS)} colours")
    values = [point for points in series.values() for point in points]
    low, high = math.log10(min(x for x, _ in values)), math.log10(max(x for x, _ in values))
    floor = _STEP * math.floor(min(y for _, y in values) / _STEP)
    top = _STEP * math.ceil(max(y for _, y in values) / _STEP)

    def across(nbytes: float) -> float:
        return _LEFT + 8 + (math.log10(nbytes) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT - 16)

    def down(decibel: float) -> float:
        return _TOP + (top - decibel) / (top - floor) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="13" fill="#374151">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
    ]
    for decibel in range(floor, top + 1, _STEP):
        parts.append(_line(_LEFT, down(decibel), _WIDTH - _RIGHT, down(decibel)))
        parts.append(_text(_LEFT - 8, down(decibel) + 4, str(decibel), "end"))
    for megabytes in _MEGABYTES:
        if low <= math.log10(megabytes * 1e6) <= high:
            parts.append(_line(across(megabytes * 1e6), _TOP, across(megabytes * 1e6), _HEIGHT - _BOTTOM))
            parts.append(_text(across(megabytes * 1e6), _HEIGHT - _BOTTOM + 18, f"{megabytes:g}", "middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, "size of the file, MB", "middle"))
    parts.append(
        f'<text transform="translate(18 {(_TOP + _HEIGHT - _BOTTOM) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        "mean PSNR of the denoiser's output, dB</text>"
    )
    for index, (name, points) in enumerate(series.items()):
        color, place = _COLORS[index], _LEFT + index * (_WIDTH - _LEFT) / len(_COLORS)
        drawn = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in sorted(points))
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="3.5" fill="{color}"/>' for x, y in points]
        parts.append(f'<rect x="{place:.0f}" y="11" width="12" height="12" fill="{color}"/>')
        parts.append(_text(place + 17, 22, name, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#e5e7eb"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
