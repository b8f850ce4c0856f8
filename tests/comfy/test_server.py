"""The pack in a real ComfyUI: nodes, example workflows, ComfyUI's own loaders, Cancel, memory, errors.

COMFYUI_PATH=/path/to/ComfyUI make comfy
"""

import shutil
import subprocess
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from lbm_lora.adapter import Adapter

from .conftest import workflow
from .server import PACKS, ROOT, ComfyServer, Pixels, Prompt, python_of

pytestmark = pytest.mark.comfy

NODES = (
    "LoadModel", "LoadLora", "ApplyLora", "Translate", "OpenLora", "Extract", "Calibrate", "Merge", "Resize", "Save",
    "Validate", "Fuse",
)  # fmt: skip

Infer = Callable[..., Pixels]


def changed(prompt: Prompt, **widgets: Any) -> Prompt:
    """A prompt with some widgets set wherever a node has them."""
    made = deepcopy(prompt)
    found = [(node["inputs"], name) for node in made.values() for name in widgets if name in node["inputs"]]
    assert {name for _, name in found} == set(widgets)
    for inputs, name in found:
        inputs[name] = widgets[name]
    return made


def with_node(prompt: Prompt, **nodes: tuple[str, dict[str, Any]]) -> Prompt:
    return {**prompt, **{name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}}


def without_lora(prompt: Prompt) -> Prompt:
    """The relight workflow with the base's MODEL in place of the LoRA's."""
    made = deepcopy(prompt)
    made["4"]["inputs"]["model"] = ["1", 0]
    del made["3"]
    return made


def difference(one: Pixels, other: Pixels) -> int:
    assert one.shape == other.shape
    return int(np.abs(one - other).max())


def test_every_node_is_registered_with_a_tooltip_for_each_input(server: ComfyServer) -> None:
    assert not [line for line in server.logged().splitlines() if "IMPORT FAILED" in line and "lbm-lora" in line]
    for name in NODES:
        info = server.get(f"/object_info/LbmLora{name}")[f"LbmLora{name}"]
        assert info["category"] == "LBM"
        inputs = [*info["input"]["required"].items(), *info["input"].get("optional", {}).items()]
        assert [key for key, (_, settings) in inputs if not settings.get("tooltip")] == []


@pytest.mark.parametrize("name", ["relight", "relight_two_loras"])
def test_a_workflow_gives_the_image_of_infer(server: ComfyServer, infer: Infer, name: str) -> None:
    (image,) = server.images(workflow(name))
    assert difference(image, infer()) <= 3
    assert difference(image, infer(lora=())) > 20  # so the LoRA is seen


def test_the_extracted_lora_and_the_tuned_model_are_those_of_infer(server: ComfyServer, infer: Infer) -> None:
    with_lora, with_tuned = server.images(workflow("extract_and_compare"))
    assert difference(with_lora, infer()) <= 3
    assert difference(with_tuned, infer("relight", ())) <= 3
    (saved,) = (server.base / "output/loras").glob("lbm_*.safetensors")
    assert len(Adapter.load(saved)) == len(Adapter.load(server.base / "models/loras/relight.safetensors"))


@pytest.mark.parametrize("strength", [1.0, 0.5, -0.3])
def test_comfyuis_own_loader_gives_the_image_of_infer(server: ComfyServer, infer: Infer, strength: float) -> None:
    before = len(server.logged())
    prompt = changed(workflow("stock_loader"), strength_model=strength)
    (image,) = server.images(prompt)
    assert difference(image, infer(lora_scale=(strength,))) <= 3
    assert "lora key not loaded" not in server.logged()[before:]
    assert "NOT LOADED" not in server.logged()[before:]


def test_comfyuis_own_loader_reads_kohyas_names_too(server: ComfyServer, infer: Infer) -> None:
    before = len(server.logged())
    (image,) = server.images(changed(workflow("stock_loader"), lora_name="relight_flat.safetensors"))
    assert difference(image, infer(lora=("relight_flat",))) <= 3
    assert "lora key not loaded" not in server.logged()[before:]


@pytest.mark.parametrize("file", ["relight_comfyui", "relight_flat"])
def test_our_loader_reads_other_formats(server: ComfyServer, infer: Infer, file: str) -> None:
    (image,) = server.images(changed(workflow("relight"), lora=f"{file}.safetensors"))
    assert difference(image, infer(lora=(file,))) <= 3


def test_strengths_are_those_of_lora_scale(server: ComfyServer, infer: Infer) -> None:
    (half,) = server.images(changed(workflow("relight"), strength=0.5))
    assert difference(half, infer(lora_scale=(0.5,))) <= 3
    (blocks,) = server.images(changed(workflow("relight"), strength=0.8, blocks="down_blocks=0.2,attn1=0"))
    assert difference(blocks, infer(lora_scale=("0.8,down_blocks=0.2,attn1=0",))) <= 3
    assert difference(blocks, infer(lora_scale=(0.8,))) > 3


def test_the_base_is_the_same_bit_for_bit_after_a_lora(server: ComfyServer) -> None:
    base = without_lora(workflow("relight"))
    (before,) = server.images(changed(base, seed=1))
    server.images(workflow("relight"))
    server.images(changed(workflow("stock_loader"), strength_model=0.9))
    (after,) = server.images(changed(base, seed=2))  # with one step a seed changes nothing but the cache
    assert difference(before, after) == 0


@pytest.mark.parametrize(("steps", "seed"), [(2, 5), (4, 6)])
def test_steps_and_noise_are_those_of_infer(server: ComfyServer, infer: Infer, steps: int, seed: int) -> None:
    (image,) = server.images(changed(workflow("relight"), steps=steps, seed=seed))
    assert difference(image, infer(num_inference_steps=steps, seed=seed)) <= 3


def test_another_size_is_that_of_infer(server: ComfyServer, infer: Infer) -> None:
    (image,) = server.images(changed(workflow("relight"), size=192))
    assert difference(image, infer(size=192)) <= 3


def test_detail_and_colours_of_the_source_are_those_of_infer(server: ComfyServer, infer: Infer) -> None:
    (image,) = server.images(changed(workflow("relight"), keep_detail=0.5, match_color=0.75))
    assert difference(image, infer(keep_detail=0.5, match_color=0.75)) <= 3
    assert difference(image, infer()) > 20


def test_a_mask_keeps_the_image_where_it_is_black(server: ComfyServer, infer: Infer, files: Path) -> None:
    prompt = with_node(workflow("relight"), mask=("LoadImageMask", {"image": "mask.png", "channel": "red"}))
    prompt["4"]["inputs"]["mask"] = ["mask", 0]
    (image,) = server.images(prompt)
    assert difference(image, infer(mask=str(files / "input/mask.png"))) <= 3


def test_a_batch_of_two_gives_two(server: ComfyServer, infer: Infer) -> None:
    prompt = with_node(
        workflow("relight"),
        flipped=("ImageInvert", {"image": ["2", 0]}),
        batch=("ImageBatch", {"image1": ["2", 0], "image2": ["flipped", 0]}),
    )
    prompt["4"]["inputs"] |= {"image": ["batch", 0], "steps": 2, "seed": 3}
    first, second = server.images(prompt)
    assert difference(first, infer(num_inference_steps=2, seed=3)) <= 3  # as if it were alone
    assert difference(first, second) > 20


def test_two_prompts_in_the_queue_do_not_mix(server: ComfyServer, infer: Infer) -> None:
    first = changed(workflow("relight"), filename_prefix="first", seed=11)
    second = changed(workflow("relight"), lora="attention.safetensors", filename_prefix="second", seed=12)
    queued = [server.queue(prompt) for prompt in (first, second, changed(first, seed=13))]
    runs = [server.wait(one) for one in queued]
    images = [server.image(run.outputs["5"]["images"][0]) for run in runs]
    for image, reference in zip(images, (infer(), infer(lora=("attention",)), infer()), strict=True):
        assert difference(image, reference) <= 3


def test_cancel_ends_a_run_within_two_seconds_and_the_next_one_works(server: ComfyServer, infer: Infer) -> None:
    prompt = with_node(workflow("relight"), many=("RepeatImageBatch", {"image": ["2", 0], "amount": 60}))
    prompt["4"]["inputs"] |= {"image": ["many", 0], "steps": 4, "size": 512}
    queued = server.queue(prompt)
    time.sleep(4)
    assert server.get("/queue")["queue_running"]
    start = time.monotonic()
    server.post("/interrupt", {})
    run = server.wait(queued, 30)
    assert time.monotonic() - start < 2
    assert any(kind == "execution_interrupted" for kind, _ in run.messages)
    (image,) = server.images(changed(workflow("relight"), seed=21))
    assert difference(image, infer()) <= 3


def test_memory_after_30_prompts_is_that_after_3(server: ComfyServer) -> None:
    resident: list[float] = []
    for number in range(30):
        server.images(changed(workflow("relight"), seed=100 + number, strength=round(0.5 + number / 100, 2)))
        resident.append(server.resident_mb)
    assert resident[-1] < resident[2] + 40  # the model has 25 MB; a copy kept for each prompt would be 700


def test_an_lbm_model_of_the_wrapper_gets_a_lora_and_stays_as_it_is(server: ComfyServer, infer: Infer) -> None:
    plain: Prompt = with_node(
        {},
        model=("TestLoadWrapped", {"checkpoint": "mini_base.safetensors"}),
        image=("LoadImage", {"image": "source.png"}),
        sample=("TestSampleWrapped", {"model": ["model", 0], "original": ["model", 0], "image": ["image", 0]}),
        save=("SaveImage", {"images": ["sample", 0], "filename_prefix": "wrapped"}),
    )
    lora = {"model": ["model", 0], "lora": "relight.safetensors", "strength": 1.0, "blocks": ""}
    adapted = with_node(deepcopy(plain), lora=("LbmLoraLoadLora", lora))
    adapted["sample"]["inputs"]["model"] = ["lora", 0]
    before, with_lora, after = [server.run(prompt) for prompt in (plain, adapted, plain)]
    assert [run.error for run in (before, with_lora, after)] == ["", "", ""]
    digests = {run.outputs["sample"]["text"][0] for run in (before, with_lora, after)}
    assert len(digests) == 1
    assert difference(server.image(with_lora.outputs["save"]["images"][0]), infer()) <= 3
    assert difference(server.image(after.outputs["save"]["images"][0]), infer(lora=())) <= 3


@pytest.mark.parametrize(
    ("widgets", "says"),
    [
        ({"lora": "broken.safetensors"}, "broken.safetensors"),
        ({"blocks": "no_such_layer=0"}, "no_such_layer"),
        ({"blocks": "attn1"}, "'blocks' '1.0,attn1'"),
        ({"checkpoint": "relight.safetensors"}, "is not the base of"),
    ],
)
def test_a_wrong_input_is_one_line_in_the_nodes_box(server: ComfyServer, widgets: dict[str, str], says: str) -> None:
    run = server.run(changed(workflow("relight"), **widgets))
    assert run.status == "error"
    assert says in run.error
    assert "\n" not in run.error
    assert "Option(" not in run.error


def test_calibrate_extract_merge_save_validate_and_fuse_work_together(server: ComfyServer, infer: Infer) -> None:
    prompt = with_node(
        {},
        image=("LoadImage", {"image": "source.png"}),
        calibrate=(
            "LbmLoraCalibrate", {"tuned": "relight.safetensors", "images": ["image", 0], "save_as": "c.safetensors"},
        ),
        extract=(
            "LbmLoraExtract",
            {"base": "mini_base.safetensors", "tuned": "relight.safetensors", "rank": 8, "conv_rank": 4, "max_size": "",
             "calibration": ["calibrate", 0]},
        ),
        open=("LbmLoraOpenLora", {"lora": "relight.safetensors"}),
        merge=("LbmLoraMerge", {"lora": ["open", 0], "lora2": ["extract", 0], "scales": "0.5 0.5", "method": "sum"}),
        resize=("LbmLoraResize", {"lora": ["merge", 0], "rank": 6, "max_size": ""}),
        save=(
            "LbmLoraSave",
            {"lora": ["resize", 0], "filename_prefix": "loras/merged", "format": "comfyui", "biases": "keep",
             "norms": "keep"},
        ),
        validate=(
            "LbmLoraValidate",
            {"base": "mini_base.safetensors", "tuned": "relight.safetensors", "lora": "relight.safetensors",
             "images": ["image", 0]},
        ),
        show=("PreviewImage", {"images": ["validate", 0]}),
        fuse=(
            "LbmLoraFuse",
            {"checkpoint": "mini_base.safetensors", "lora": "relight.safetensors", "strength": 1.0,
             "filename_prefix": "diffusion_models/fused"},
        ),
    )  # fmt: skip
    run = server.run(prompt)
    assert run.status == "success", run.error
    merged = Path(run.outputs["save"]["text"][0])
    assert merged.name == "merged_00001_.safetensors"
    assert next(iter(load_file(merged))).startswith("diffusion_model.")
    assert "total relative error" in run.outputs["validate"]["text"][0]
    assert run.outputs["show"]["images"]
    fused = without_lora(changed(workflow("relight"), checkpoint="fused_00001_.safetensors"))
    (image,) = server.images(fused)  # ComfyUI lists what its output folder holds
    assert difference(image, infer()) <= 3


def python_without_lbm_lora(comfyui: Path) -> Path:
    python = python_of(comfyui)
    found = subprocess.run([python, "-c", "import lbm_lora"], cwd=comfyui, env={}, capture_output=True, check=False)
    if found.returncode == 0:
        pytest.skip(f"lbm-lora is installed in ComfyUI's Python, {python}")
    return python


@pytest.mark.parametrize("form", ["clone", "copy"])
def test_a_clone_of_the_repository_and_a_copy_of_the_pack_work(
    comfyui: Path, files: Path, infer: Infer, tmp_path: Path, form: str
) -> None:
    python = python_of(comfyui) if form == "copy" else python_without_lbm_lora(comfyui)
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    placed = tmp_path / "custom_nodes/lbm-lora"
    if form == "clone":  # with what is not committed yet
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        listed += ["src", "integrations", "example_workflows", "*.py"]
        for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
            (placed / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, placed / name)
    else:  # as the registry installs it: next to the installed package
        shutil.copytree(PACKS["lbm-lora"], placed)
    server = ComfyServer(comfyui, python, tmp_path, is_installed=form == "copy")
    try:
        (image,) = server.images(workflow("relight"))
        templates = server.get("/workflow_templates")["lbm-lora"]
        opened = [server.get(f"/api/workflow_templates/lbm-lora/{name}.json") for name in templates]
    finally:
        server.stop()
    assert difference(image, infer()) <= 3
    assert sorted(templates) == ["extract_and_compare", "relight", "relight_two_loras", "stock_loader"]
    assert [one for one in opened if not one["nodes"]] == []
    ours = [line for line in server.logged().splitlines() if "lbm-lora" in line or "pyproject" in line]
    assert [line for line in ours if "FAILED" in line or "Cannot import" in line or "Unable to parse" in line] == []


def test_a_pack_without_the_package_says_what_to_install(comfyui: Path, tmp_path: Path) -> None:
    python = python_without_lbm_lora(comfyui)
    shutil.copytree(PACKS["lbm-lora"], tmp_path / "custom_nodes/lbm-lora")
    server = ComfyServer(comfyui, python, tmp_path, packs={"lbm-lora": PACKS["lbm-lora"]}, is_installed=False)
    try:
        assert server.get("/object_info/LbmLoraTranslate") == {}
    finally:
        server.stop()
    (line,) = [line for line in server.logged().splitlines() if "Cannot import" in line and "lbm-lora" in line]
    assert line.endswith(f"need the Python package lbm_lora. Run: {python} -m pip install lbm-lora")


def test_parts_of_the_model_are_cast_and_streamed(comfyui: Path, files: Path) -> None:
    """What `--lowvram` does on a GPU, by ComfyUI's own functions on the CPU, in a process of its own."""
    script = ROOT / "tests/comfy/partial_load.py"
    arguments = [str(files / f"models/{name}") for name in ("diffusion_models/mini_base", "loras/relight")]
    done = subprocess.run(
        [python_of(comfyui), script, *(f"{path}.safetensors" for path in arguments)],
        cwd=comfyui, env={"PYTHONPATH": f"{comfyui}:{ROOT / 'src'}", "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "ok"


def test_a_denoiser_in_8_bits_gives_nearly_the_image(comfyui: Path, files: Path, infer: Infer, tmp_path: Path) -> None:
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    server = ComfyServer(comfyui, python_of(comfyui), tmp_path, arguments=["--fp8_e4m3fn-unet"])
    try:
        (image,) = server.images(workflow("relight"))
    finally:
        server.stop()
    assert 0.5 < np.abs(image - infer()).mean() < 6
