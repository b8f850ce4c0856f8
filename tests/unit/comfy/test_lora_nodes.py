"""Nodes that make, merge, measure and save LoRAs, on a tiny model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_standin import Interrupted, Run, State
from safetensors.torch import load_file
from torch import Tensor

from lbm_lora.adapter import Adapter
from lbm_lora.comfy import files
from lbm_lora.errors import AdapterError, ConfigError, OutputError


@pytest.mark.slow
def test_extract_gives_the_lora_of_the_command(run: Run, lists: Path) -> None:
    (lora,) = run("LbmLoraExtract", base="base.safetensors", tuned="tuned.safetensors", rank=4, conv_rank=4)
    expected = Adapter.load(lists / "loras/relight.safetensors").cast(torch.bfloat16)
    assert lora.modules.keys() == expected.modules.keys()
    for name, module in expected.modules.items():
        assert torch.allclose(lora.modules[name].delta(), module.delta(), atol=2e-3)


@pytest.mark.slow
def test_extract_by_size_keeps_to_it(run: Run, comfy: State) -> None:
    (lora,) = run("LbmLoraExtract", base="base.safetensors", tuned="tuned.safetensors", max_size="40KB")
    (larger,) = run("LbmLoraExtract", base="base.safetensors", tuned="tuned.safetensors")
    assert lora.nbytes < 40_000 < larger.nbytes
    assert sum(comfy.ticks) > 100  # the bar moves


def test_extract_says_which_widget_is_wrong(run: Run) -> None:
    with pytest.raises(ConfigError, match="'max_size'"):
        run("LbmLoraExtract", base="base.safetensors", tuned="tuned.safetensors", max_size="much")


def test_extract_can_be_cancelled(run: Run, comfy: State) -> None:
    comfy.interrupted = True
    with pytest.raises(Interrupted):
        run("LbmLoraExtract", base="base.safetensors", tuned="tuned.safetensors")


def test_merge_adds_up_at_the_scales(run: Run) -> None:
    (one,) = run("LbmLoraOpenLora", lora="relight.safetensors")
    (two,) = run("LbmLoraOpenLora", lora="attention.safetensors")
    (merged,) = run("LbmLoraMerge", lora=one, lora2=two, scales="0.5 -1")
    name = next(name for name in two.params if name.endswith("weight"))
    expected = 0.5 * one.delta(name) - two.delta(name)
    assert torch.allclose(merged.delta(name), expected, atol=1e-4), (merged.delta(name) - expected).abs().max()


def test_merge_says_which_widget_is_wrong(run: Run) -> None:
    (one,) = run("LbmLoraOpenLora", lora="relight.safetensors")
    with pytest.raises(ConfigError, match="'scales' has 3 values for 2 LoRAs"):
        run("LbmLoraMerge", lora=one, lora2=one, scales="1 1 1")


def test_resize_lowers_the_ranks(run: Run, tmp_path: Path) -> None:
    (lora,) = run("LbmLoraOpenLora", lora="attention.safetensors")
    (resized,) = run("LbmLoraResize", lora=lora, rank=2)
    assert {module.rank for module in resized.modules.values()} == {2}
    (small,) = run("LbmLoraResize", lora=lora, max_size="13KB")
    small.save(tmp_path / "small.safetensors")
    assert (tmp_path / "small.safetensors").stat().st_size < 13_000
    assert min(module.rank for module in small.modules.values()) < 4
    with pytest.raises(ConfigError, match="'max_size'"):
        run("LbmLoraResize", lora=lora, max_size="much")


def test_save_writes_each_format_under_the_next_number(run: Run, comfy: State) -> None:
    (lora,) = run("LbmLoraOpenLora", lora="relight.safetensors")
    (first,) = run("LbmLoraSave", lora=lora, filename_prefix="saved/lora", format="native")
    (second,) = run("LbmLoraSave", lora=lora, filename_prefix="saved/lora", format="comfyui")
    assert [Path(one).relative_to(comfy.root / "output").as_posix() for one in (first, second)] == [
        "saved/lora_00001_.safetensors",
        "saved/lora_00002_.safetensors",
    ]
    assert len(Adapter.load(first)) == len(lora)
    assert all(key.startswith("diffusion_model.") for key in load_file(second))


def test_a_prefix_with_brackets_is_no_pattern(run: Run) -> None:
    (lora,) = run("LbmLoraOpenLora", lora="relight.safetensors")
    paths = [run("LbmLoraSave", lora=lora, filename_prefix="a[1]", format="native")[0] for _ in range(2)]
    assert [Path(one).name for one in paths] == ["a[1]_00001_.safetensors", "a[1]_00002_.safetensors"]


def test_save_says_which_widget_leaves_deltas_out(run: Run) -> None:
    (lora,) = run("LbmLoraOpenLora", lora="relight.safetensors")
    with pytest.raises(AdapterError, match="To leave them out: 'biases' drop, 'norms' drop"):
        run("LbmLoraSave", lora=lora, filename_prefix="saved/k", format="kohya-diffusers")
    (path,) = run(
        "LbmLoraSave", lora=lora, filename_prefix="saved/k", format="kohya-diffusers", biases="drop", norms="drop"
    )
    assert Path(path).name == "k_00001_.safetensors"


def test_nothing_is_written_outside_of_the_output_folder(run: Run) -> None:
    (lora,) = run("LbmLoraOpenLora", lora="relight.safetensors")
    with pytest.raises(OutputError, match=r"'\.\./lora' is not a name in ComfyUI's output folder"):
        run("LbmLoraSave", lora=lora, filename_prefix="../lora", format="native")


@pytest.mark.slow
def test_validate_gives_numbers_and_a_heat_map(run: Run) -> None:
    (heat, summary) = run(
        "LbmLoraValidate", base="base.safetensors", tuned="tuned.safetensors", lora="relight.safetensors"
    )
    assert heat.ndim == 4
    assert heat.shape[-1] == 3
    assert "total relative error" in summary


def test_fuse_writes_a_checkpoint_with_the_lora_in_it(run: Run, lists: Path) -> None:
    (path,) = run(
        "LbmLoraFuse", checkpoint="base.safetensors", lora="relight.safetensors", filename_prefix="models/fused"
    )
    fused, base = load_file(path), load_file(lists / "diffusion_models/base.safetensors")
    lora = Adapter.load(lists / "loras/relight.safetensors")
    name = next(iter(lora.params))
    delta = lora.delta(name)
    assert delta is not None
    key = f"denoiser.{name}"
    assert torch.equal(fused[key], (base[key].float() + delta).to(base[key].dtype))


@pytest.mark.slow
def test_calibrate_writes_statistics_that_extract_takes(run: Run, comfy: State, image: Tensor) -> None:
    small: Any = image[:1]
    (path,) = run("LbmLoraCalibrate", tuned="tuned.safetensors", images=small, save_as="statistics/a.safetensors")
    assert Path(path) == comfy.root / "output/statistics/a.safetensors"
    (lora,) = run("LbmLoraExtract", base="base.safetensors", tuned="tuned.safetensors", calibration=path)
    assert lora.metadata.is_made_for_output


def test_a_name_that_is_a_link_is_kept_as_one(lists: Path) -> None:
    """Who writes there refuses it then."""
    path = files.output_path("statistics/a.safetensors")
    path.symlink_to("archive.safetensors")
    assert files.output_path("statistics/a.safetensors") == path
    assert path.is_symlink()
    for name in ("..", "statistics/..", "statistics/../../x", ".", " "):
        with pytest.raises(OutputError, match="is not a name in ComfyUI's output folder"):
            files.output_path(name)
