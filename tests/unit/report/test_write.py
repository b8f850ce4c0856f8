"""The files of a report, and what importing the package loads."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lbm_lora.fidelity.outputs import ImageSet
from lbm_lora.files import MARK
from lbm_lora.imaging.image_file import encode_image
from lbm_lora.progress import LbmLoraWarning
from lbm_lora.report import Report, full_text, parse_report, write_report

PNG = b"\x89PNG\r\n\x1a\n and so on"


def test_all_forms_lie_in_one_folder(report: Report, build_set: Callable[..., ImageSet], tmp_path: Path) -> None:
    paths = write_report(report, tmp_path / "new" / "folder", image=PNG, shown=[build_set("cup.png")])
    assert [path.name for path in paths] == ["report.txt", "report.json", "report.html", "comparison.png"]
    assert {path.name for path in paths} == {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    text, json_file, page, image = paths
    assert text.read_text() == f"{full_text(report)}\n\n# {MARK}: report\n"
    assert parse_report(json_file.read_text()) == report
    assert "data:image/png;base64," in page.read_text()
    assert image.read_bytes() == PNG


def test_an_earlier_image_beside_a_report_without_one_is_named(report: Report, tmp_path: Path) -> None:
    image = encode_image(Image.new("RGB", (4, 4)), ".png", mark=f"{MARK}: comparison")
    write_report(report, tmp_path, image=image)
    with pytest.warns(LbmLoraWarning, match=r"comparison\.png is of an earlier report: this one has no images"):
        write_report(report, tmp_path)
    assert (tmp_path / "comparison.png").read_bytes() == image


def test_plotly_and_jinja_are_loaded_for_a_page_only() -> None:
    code = "import sys, lbm_lora.report; sys.exit(any(name in sys.modules for name in ('plotly', 'jinja2')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
