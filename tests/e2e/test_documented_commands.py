"""The documented command lines, word for word, in a folder laid out at the documented paths.

The comment behind `--conv_rank 16 \\ # ...` of step 1 is not part of the command. There is no CUDA here: `--device
"cuda"` gives a warning, and the CPU.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from lbm_lora import load_adapter, open_checkpoint

pytestmark = pytest.mark.e2e

STEP_0 = r"""
python lora/create_exact_base_model.py \
  --config_path "examples/inference/ckpts/relighting/config.yaml" \
  --save_path "lora/checkpoints/exact_base.ckpt" \
  --device "cuda"
"""
STEP_1 = r"""
python lora/extract_lora_native.py \
  --base_model_path "lora/exact_base.ckpt" \
  --tuned_model_path "examples/inference/ckpts/relighting/model.safetensors" \
  --save_to "lora/checkpoints/my_lora.safetensors" \
  --rank 32 --conv_rank 16 \
  --verbose
"""
STEP_2 = "python lora/test_reconstruction_simple.py"
STEP_3 = r"""
python lora/inference_native.py \
  --base_model_path "lora/checkpoints/exact_base.ckpt" \
  --lora_path "lora/checkpoints/my_lora.safetensors" \
  --source_image "examples/inference/ckpts/relighting/assets/source_image.jpg" \
  --output_path "lora/assets/output.jpg" \
  --lora_scale 1.0 \
  --verbose
"""
DEPLOYMENT = [
    "python lora/extract_lora_native.py --rank 64 --conv_rank 32",
    "python lora/inference_native.py --lora_scale 1.0",
]
RESEARCH = [
    "python lora/extract_lora_native.py --rank 9999 --conv_rank 9999",
    "python lora/test_reconstruction_simple.py",
]


def run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command line as a shell would, with this environment's python."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def after_steps(documented_folder: Path) -> tuple[Path, list[subprocess.CompletedProcess[str]]]:
    """The folder after steps 0 to 3, and what they printed."""
    return documented_folder, [run(line, documented_folder) for line in (STEP_0, STEP_1, STEP_2, STEP_3)]


def test_step_0_writes_twins(after_steps: tuple[Path, list[subprocess.CompletedProcess[str]]]) -> None:
    folder, (done, *_) = after_steps
    with (
        open_checkpoint(folder / "lora/checkpoints/exact_base.ckpt") as ckpt,
        open_checkpoint(folder / "lora/checkpoints/exact_base.safetensors") as twin,
    ):
        assert len(ckpt.specs) == 1676 + 248 + 1
        assert ckpt.specs == twin.specs
        assert ckpt.extra["architecture"] == "LBM"
        assert ckpt.extra["lpips_excluded"] is True
    assert "cropped" in done.stdout


def test_step_1_extracts_every_tensor(after_steps: tuple[Path, list[subprocess.CompletedProcess[str]]]) -> None:
    folder, (_, done, *_) = after_steps
    adapter = load_adapter(folder / "lora/checkpoints/my_lora.safetensors")
    assert len(adapter.modules) == 792
    assert len(adapter.dense) == 884
    assert all(module.scaling == 1 for module in adapter.modules.values())
    assert "lora/exact_base.ckpt does not exist, lora/checkpoints/exact_base.ckpt does: it is used" in done.stderr
    facts = yaml.safe_load((folder / "lora/checkpoints/my_lora_config.yaml").read_text(encoding="utf-8"))
    assert (facts["total_analyzed_layers"], facts["total_lora_modules"]) == (792, 792)


def test_step_2_validates_and_lists_the_layers(
    after_steps: tuple[Path, list[subprocess.CompletedProcess[str]]],
) -> None:
    folder, (_, _, done, _) = after_steps
    lines = (folder / "lora/lora_layer_names.txt").read_text(encoding="utf-8").splitlines()
    assert [line[:1] for line in lines[:3]] == ["#", "#", ""]
    assert len(lines[3:]) == 792
    assert lines[3:] == sorted(lines[3:])
    assert all(line.startswith("denoiser.") for line in lines[3:])
    assert "792" in done.stdout
    assert "100.0" in done.stdout


def test_step_3_writes_an_image_and_the_copy_of_its_source(
    after_steps: tuple[Path, list[subprocess.CompletedProcess[str]]],
) -> None:
    folder, (*_, done) = after_steps
    source = folder / "examples/inference/ckpts/relighting/assets/source_image.jpg"
    for name in ("output.jpg", "output_input.jpg"):
        with Image.open(source) as before, Image.open(folder / "lora/assets" / name) as after:
            assert after.size == before.size
    assert {path.name for path in (folder / "lora/assets").iterdir()} == {"output.jpg", "output_input.jpg"}
    assert "Native LoRA applied (all layers): 792 success, 0 failed (100.0% success rate)" in done.stderr


@pytest.mark.parametrize(
    "lines", [pytest.param(DEPLOYMENT, id="deployment"), pytest.param(RESEARCH, id="research", marks=pytest.mark.slow)]
)
def test_shortened_lines_take_the_documented_paths(
    lines: list[str], after_steps: tuple[Path, list[subprocess.CompletedProcess[str]]]
) -> None:
    folder, _ = after_steps
    for line in lines:
        run(line, folder)
    assert len(load_adapter(folder / "lora/checkpoints/my_lora.safetensors").modules) == 792
