"""The examples make what they say, with other files (a small stand-in) and as they are, on the mini model."""

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lbm_lora import bundled, extract, load_adapter, open_checkpoint
from standins import Lbm, write_lbm

EXAMPLES = Path(__file__).parents[2] / "examples"
Run = Callable[..., str]


@pytest.fixture(scope="module")
def lbm(tmp_path_factory: pytest.TempPathFactory) -> Lbm:
    """A small LBM, its base next to the tuned checkpoint. Read only."""
    made = write_lbm(tmp_path_factory.mktemp("lbm"))
    shutil.copy(made.base, made.tuned.parent / "exact_base.safetensors")
    return made


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a script with arguments, in a folder of its own; gives what it prints."""
    monkeypatch.chdir(tmp_path)

    def _run(script: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return _run


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder with four small images, all different."""
    folder = tmp_path / "sources"
    folder.mkdir()
    for path in sorted(bundled.PAIRS.glob("*.source.png"))[:4]:
        Image.open(path).convert("RGB").resize((64, 64)).save(folder / path.name)
    return folder


@pytest.mark.slow
def test_compress_makes_two_sizes(run: Run, lbm: Lbm, sources: Path, tmp_path: Path) -> None:
    said = run("compress.py", lbm.tuned, "--images", sources, "--count", 1, "--size", "600KB")
    large, small = (tmp_path / "out/compress" / f"{name}.safetensors" for name in ("tuned_lora", "half"))
    assert large.stat().st_size <= 600_000
    assert small.stat().st_size <= large.stat().st_size / 2
    assert "PSNR to the tuned model's images" in said


def test_merge_scales_draws_one_image_for_each_pair_of_scales(
    run: Run, lbm: Lbm, sources: Path, tmp_path: Path
) -> None:
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    extract(lbm.base, lbm.tuned, rank=2, include="mid_block", save_to=files[0])
    extract(lbm.base, lbm.tuned, rank=2, include="down_blocks.2", save_to=files[1])
    run("merge_scales.py", lbm.base, *files, "--scales", 0, 1, "--image", min(sources.glob("*")))
    grid = Image.open(tmp_path / "out/merge_scales/grid.png")
    assert grid.size == (128, 128)
    assert len({grid.crop((x, y, x + 64, y + 64)).tobytes() for x in (0, 64) for y in (0, 64)}) == 4
    with open_checkpoint(tmp_path / "out/merge_scales/merged.safetensors") as merged, open_checkpoint(lbm.base) as base:
        assert merged.component().specs == base.component().specs


def test_batch_leaves_out_a_damaged_image_and_goes_on_where_it_was(
    run: Run, lbm: Lbm, sources: Path, tmp_path: Path
) -> None:
    (sources / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    first = run("batch.py", lbm.tuned, "--images", sources)
    assert "4 images written" in first
    assert "failed: " in first
    assert "damaged.png" in first
    assert "0 images written" in run("batch.py", lbm.tuned, "--images", sources)
    assert len(list((tmp_path / "out/batch").iterdir())) == 4


def test_train_makes_a_lora(run: Run, lbm: Lbm, tmp_path: Path) -> None:
    said = run("train.py", "--base", lbm.base, "--steps", 1, "--batch_size", 1, "--size", 64)
    assert "1 steps" in said
    assert load_adapter(tmp_path / "out/train/run/last.safetensors").modules
    assert (tmp_path / "out/train/trained.png").is_file()


def test_the_folder_of_the_diffusers_pipeline_gives_the_same_images(
    run: Run, lbm: Lbm, sources: Path, tmp_path: Path
) -> None:
    said = run("diffusers_pipeline.py", lbm.tuned, "--images", *sorted(sources.glob("*"))[:2])
    assert "'unet': 'UNet2DConditionModel'" in said
    assert (tmp_path / "out/diffusers_pipeline/pipeline/model_index.json").is_file()
    assert len(list((tmp_path / "out/diffusers_pipeline").glob("*.png"))) == 2


def test_the_notebook_is_committed_without_results() -> None:
    for cell in cells():
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        compile("".join(cell["source"]), "quickstart.ipynb", "exec")


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_every_script_runs_as_it_is(run: Run, script: str, tmp_path: Path) -> None:
    assert run(script)
    assert list((tmp_path / "out" / script.removesuffix(".py")).iterdir())


@pytest.mark.slow
def test_the_cells_of_the_notebook_run_in_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in cells():
        exec(compile("".join(cell["source"]), "quickstart.ipynb", "exec"), names)
    assert "base + LoRA: " in capsys.readouterr().out
    assert (tmp_path / "out/quickstart/scales.png").is_file()


def cells() -> list[dict[str, Any]]:
    """The cells of the notebook that hold code."""
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
