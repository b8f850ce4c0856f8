"""`extract` and `extract_several`: the values are those of the command's files."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import lbm_lora
from lbm_lora import Adapter, ConfigError, ExtractConfig, MeasuredAdapter
from lbm_lora.errors import CheckpointError, OutputError
from lbm_lora.naming import ModuleName
from smallnet import small_net, small_state
from standins import Lbm

States = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
Save = Callable[[str, Mapping[str, Tensor]], Path]


@pytest.fixture
def pair(save: Save) -> tuple[Path, Path]:
    """Base and tuned of the small network, as files."""
    return save("base.safetensors", small_state(1)), save("tuned.safetensors", small_state(2))


def command(base: Path, tuned: Path, save_to: Path, **options: Any) -> Adapter:
    """What the command line's workflow writes."""
    config = ExtractConfig(base_model_path=base, tuned_model_path=tuned, save_to=save_to, **options)
    return Adapter.load(lbm_lora.run_extract(config).adapter)


def tensors(adapter: Adapter) -> dict[str, Tensor]:
    found = {f"{name}.{side}": getattr(one, side) for name, one in adapter.modules.items() for side in ("up", "down")}
    alphas = {f"{name}.alpha": torch.tensor(one.alpha) for name, one in adapter.modules.items()}
    return found | alphas | {str(name): delta for name, delta in adapter.dense.items()}


def same(one: Adapter, other: Adapter) -> bool:
    """Whether two adapters hold the same bits under the same names."""
    first, second = tensors(one), tensors(other)
    named = first.keys() == second.keys()
    return named and all(t.dtype == second[n].dtype and torch.equal(t, second[n]) for n, t in first.items())


@pytest.mark.parametrize("options", [{"rank": 3}, {"rank": 2, "save_precision": "int8"}, {"max_error": 0.4}])
def test_paths_open_checkpoints_and_state_dicts_give_the_tensors_of_the_command(
    pair: tuple[Path, Path], empty: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    written = command(*pair, tmp_path / "l.safetensors", **options)
    with lbm_lora.open_checkpoint(pair[0]) as base, lbm_lora.open_checkpoint(pair[1]) as tuned:
        values: list[tuple[Any, Any]] = [pair, (str(pair[0]), pair[1]), (base, tuned), (small_state(1), small_state(2))]
        found = [lbm_lora.extract(*value, **options) for value in values]
        base.read("point.bias")  # still open
    assert all(same(one, written) for one in found)
    assert all(one.metadata == written.metadata for one in found[:3])
    assert list(empty.iterdir()) == []


def test_a_saved_adapter_has_the_tensors_and_the_header_of_the_command(pair: tuple[Path, Path], tmp_path: Path) -> None:
    command(*pair, tmp_path / "l.safetensors", rank=3)
    saved = lbm_lora.extract(*pair, rank=3).save(tmp_path / "saved.safetensors")
    with lbm_lora.open_checkpoint(tmp_path / "l.safetensors") as one, lbm_lora.open_checkpoint(saved) as other:
        assert one.metadata == other.metadata
        assert one.specs == other.specs


def test_save_to_writes_the_bytes_of_the_command(pair: tuple[Path, Path], tmp_path: Path) -> None:
    command(*pair, tmp_path / "a" / "l.safetensors", rank=3)
    lora = lbm_lora.extract(*pair, rank=3, save_to=tmp_path / "b" / "l.safetensors")
    for name in ("l.safetensors", "l_config.yaml"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert lora.path == tmp_path / "b" / "l.safetensors"
    with pytest.raises(OutputError, match="would be overwritten"):
        lbm_lora.extract(*pair, save_to=pair[0])


def test_the_report_is_that_of_the_command(pair: tuple[Path, Path], tmp_path: Path) -> None:
    config = ExtractConfig(base_model_path=pair[0], tuned_model_path=pair[1], save_to=tmp_path / "l.safetensors")
    result, lora = lbm_lora.run_extract(config), lbm_lora.extract(*pair)
    assert dataclasses.replace(lora.report, adapter="l.safetensors") == result.report
    assert (lora.predicted, lora.trial, lora.sizes) == (None, None, ())
    chosen = lbm_lora.extract(*pair, max_error=0.4)
    assert chosen.predicted is not None
    assert chosen.report.relative_error <= 0.4


def test_options_are_plain_python_values(pair: tuple[Path, Path]) -> None:
    lora = lbm_lora.extract(*pair, include="head", rank=2, dense=False, save_precision=torch.float16, device="cpu")
    assert set(lora.modules) == {"head.0", "head.2"}
    assert lora.modules[ModuleName("head.0")].up.dtype == torch.float16
    assert repr(lora) == "<MeasuredAdapter: 2 lora modules of rank 2, 0 dense deltas, fp16, 0.0 MB>"
    assert type(lora.cast(torch.float32)) is Adapter


def test_several_ranks_or_sizes_come_out_of_one_pass(pair: tuple[Path, Path], tmp_path: Path) -> None:
    low, high = lbm_lora.extract_several(*pair, ranks=[1, 4])
    assert (low.modules[ModuleName("head.0")].rank, high.modules[ModuleName("head.0")].rank) == (1, 4)
    assert high.report.relative_error < low.report.relative_error
    written = lbm_lora.extract_several(*pair, ranks=[1, 4], save_to=tmp_path / "l.safetensors")
    assert [one.path for one in written] == [tmp_path / "l_r1.safetensors", tmp_path / "l_r4.safetensors"]
    assert same(low, written[0])
    (only,) = lbm_lora.extract_several(*pair, max_size="20kB")
    assert isinstance(only, MeasuredAdapter)


def test_what_cannot_be_asked_for_is_said_in_pythons_words(pair: tuple[Path, Path], empty: Path) -> None:
    wrong: Any = {"rnk": 3}
    several: Any = {"ranks": [1, 2]}
    text = r"^extract\(\) got an unexpected keyword argument 'rnk'\. Did you mean 'rank'\?$"
    with pytest.raises(TypeError, match=text):
        lbm_lora.extract(*pair, **wrong)
    with pytest.raises(ConfigError, match=r"^ranks asks for 2 LoRAs, extract gives one\. Call extract_several\.$"):
        lbm_lora.extract(*pair, **several)
    with pytest.raises(ConfigError, match=r"^calibration and calibration_images both weight the errors"):
        lbm_lora.extract(*pair, calibration="s.safetensors", calibration_images="x")
    with pytest.raises(CheckpointError, match=r"^tuned state dict has no change from base state dict that can be"):
        lbm_lora.extract(small_state(1), small_state(1))
    assert list(empty.iterdir()) == []


def test_the_callers_tensors_are_not_changed(pair: tuple[Path, Path]) -> None:
    state = small_net(2).state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    lora = lbm_lora.extract(small_state(1), state, rank=9999, conv_rank=9999, save_precision="float")
    assert all(torch.equal(state[name], before[name]) for name in before)
    own = {tensor.data_ptr() for tensor in state.values()}
    stored = {tensor.data_ptr() for module in lora.modules.values() for tensor in (module.up, module.down)}
    assert not own & (stored | {delta.data_ptr() for delta in lora.dense.values()})


@pytest.mark.slow
def test_a_calibrated_adapter_in_memory_is_nearly_that_of_the_files(
    lbm: Lbm,
    states: States,
    images: list[Image.Image],
    empty: Path,
    tmp_path: Path,
) -> None:
    measure: dict[str, Any] = {"size": 64, "timesteps": 1000.0, "probes": 1, "device": "cpu", "torch_dtype": "float"}
    config_path = lbm.tuned.parent / "config.yaml"
    statistics = lbm_lora.calibrate(states[1], images[:2], config_path=config_path, **measure)
    path = tmp_path / "statistics.safetensors"
    from_file = lbm_lora.calibrate(lbm.tuned, images[:2], save_to=path, **measure)
    assert list(statistics) == list(from_file)
    kept = lbm_lora.extract(*states, calibration=statistics, rank=2, config_path=config_path, device="cpu")
    written = command(lbm.base, lbm.tuned, tmp_path / "l.safetensors", calibration=path, rank=2, device="cpu")
    assert kept.params == written.params
    for name in kept.params:  # a file of statistics holds them in two bytes
        one, other = kept.delta(name), written.delta(name)
        assert one is not None
        assert other is not None
        assert (one - other).norm() <= 0.02 * other.norm(), name
    assert kept.predicted is not None
    assert kept.predicted.of == "output"
    assert list(empty.iterdir()) == []


@pytest.mark.slow  # the workflow is tested in the default run
def test_compress_makes_everything_from_the_tuned_model_and_images(
    lbm: Lbm, images: list[Image.Image], tmp_path: Path
) -> None:
    with pytest.warns(lbm_lora.LbmLoraWarning, match="1 of 2 images was used to make the LoRA"):
        result = lbm_lora.compress(
            lbm.tuned,
            images=images[:2],
            output=tmp_path / "out",
            base_model_path=lbm.base,
            size="300KB",
            count=1,
            device="cpu",
        )
    assert result.adapter == tmp_path / "out" / "tuned_lora.safetensors"
    assert (result.images, result.seen_images) == (2, 1)  # of two, none is held out
    assert result.with_lora.mean_psnr > result.without.mean_psnr
