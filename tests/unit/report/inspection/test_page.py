"""The page: it loads nothing, names from a file are text in it, and the facts are those of the screen."""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lbm_lora.configs.inspect import InspectConfig
from lbm_lora.report.inspection.page import render_page, write_page
from lbm_lora.workflows.inspect import run

Rand = Callable[..., Tensor]


def lora(path: Path, rand: Rand, name: str) -> Path:
    save_file({f"{name}.lora_up.weight": rand(4, 2), f"{name}.lora_down.weight": rand(2, 3)}, path)
    return path


def test_a_page_of_one_lora(tmp_path: Path, rand: Rand) -> None:
    found = run(InspectConfig(files=(lora(tmp_path / "l.safetensors", rand, "mid_block.a.conv1"),)))
    page = render_page(found)
    assert page == render_page(found)
    assert "<h1>l.safetensors</h1>" in page
    assert all(f"<h3>{title}</h3>" in page for title in ("Norm of the change", "Ranks in use", "Blocks", "Readers"))
    (cell,) = re.findall(r'<td class="cell hot" style="--shade: 1.000" title="1 tensor, [^"]*">([\d.]+)</td>', page)
    assert found.file.adapter is not None
    assert float(cell) == float(f"{found.file.adapter.norm:.3g}")
    assert "http" not in re.sub(r"http-equiv", "", page)
    assert "<script" not in page


def test_names_from_a_file_are_text(tmp_path: Path, rand: Rand) -> None:
    path = tmp_path / "<b>.safetensors"
    name = "<img src=x onerror=alert(1)>.\x1b[31m"
    save_file(
        {f"{name}.lora_up.weight": rand(4, 2), f"{name}.lora_down.weight": rand(2, 3)},
        path,
        metadata={"<script>": "</style>\x07"},
    )
    page = render_page(run(InspectConfig(files=(path,))))
    assert "<img" not in page
    assert "<script>" not in page
    assert page.count("</style>") == 1
    assert "\x1b" not in page
    assert "\x07" not in page


def test_a_page_of_two_files(tmp_path: Path, rand: Rand) -> None:
    paths = [lora(tmp_path / f"{name}.safetensors", rand, "mid_block.a.conv1") for name in "ab"]
    page = render_page(run(InspectConfig(files=(paths[0], paths[1]))))
    assert "<h1>a.safetensors and b.safetensors</h1>" in page
    assert all(f"<h3>{title}</h3>" in page for title in ("Norm of the difference", "Largest differences"))


def test_a_checkpoint_has_a_heat_map_of_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_file({"denoiser.conv_in.weight": torch.ones(4, 4, 3, 3), "denoiser.conv_in.bias": torch.ones(4)}, path)
    assert "<h3>Norm of the weights</h3>" in render_page(run(InspectConfig(files=(path,))))


def test_the_folder_is_made(tmp_path: Path, rand: Rand) -> None:
    found = run(InspectConfig(files=(lora(tmp_path / "l.safetensors", rand, "a"),)))
    path = write_page(found, tmp_path / "new" / "folder")
    assert path.read_text(encoding="utf-8") == render_page(found)
