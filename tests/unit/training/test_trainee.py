"""What learns by the configuration, and what its results say of themselves."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, LoraModule, load_adapter, save_adapter
from lbm_lora.checkpoint import Checkpoint, fingerprint, open_checkpoint, pair
from lbm_lora.errors import ConfigError
from lbm_lora.model.build import LBMModel, load_model
from lbm_lora.naming import ModuleName, ParamName, module_of
from lbm_lora.progress import LbmLoraWarning
from lbm_lora.training.prepare import make_trainee, read_given
from lbm_lora.training.settings import TrainConfig
from lbm_lora.training.trainee import FullModel, Write, result_writer, trained_steps

Config = Callable[..., TrainConfig]
Predict = Callable[..., Tensor]


def test_everything_learns_in_fp32_in_mode_full(base_bf16: Path, config: Config) -> None:
    model = load_model(base_bf16, dtype=torch.bfloat16)
    trainee = make_trainee(model, config(mode="full", lora_rank=None, lora_target_modules=None), None, None)
    assert isinstance(trainee, FullModel)
    assert trainee.parameters.keys() == dict(model.denoiser.named_parameters()).keys()
    assert all(p.requires_grad and p.dtype == torch.float32 for p in trainee.parameters.values())


def test_what_alpha_of_a_continued_lora_means(base_fp32: Path, model: LBMModel, config: Config, tmp_path: Path) -> None:
    path = tmp_path / "doubled.safetensors"
    chosen = config(lora_weights_path=path, lora_rank=None, lora_target_modules=None)
    trainee = make_trainee(model, config(), None, None)
    with open_checkpoint(base_fp32) as checkpoint:
        base = checkpoint.component()
        found = fingerprint(base)
        write = result_writer(trainee, config(), checkpoint, found, model.config, "")
        write(trainee.parameters, 1, path)
        first = load_adapter(path)
        doubled = {name: replace(module, alpha=2 * module.alpha) for name, module in first.modules.items()}
        save_adapter(replace(first, modules=doubled), path)
        for alpha_is, scaling in (("auto", 2.0), ("file", 2.0), ("rank", 1.0)):
            given = read_given(chosen.model_copy(update={"lora_alpha_is": alpha_is}), base, found)
            assert given is not None
            assert {module.scaling for module in given.modules.values()} == {scaling}


def test_a_lora_of_sdxl_is_continued_with_what_makes_sense(base_fp32: Path, config: Config, tmp_path: Path) -> None:
    path = tmp_path / "sdxl.safetensors"
    chosen = config(lora_weights_path=path, lora_rank=None, lora_target_modules=None)
    with open_checkpoint(base_fp32) as checkpoint:
        base = checkpoint.component()
        query = next(name for name in base if name.endswith("attn2.to_q.weight"))
        modules: dict[ModuleName, LoraModule] = {}
        for param, more in ((query, 0), (ParamName(query.replace("to_q", "to_v")), 50)):
            name, (out, columns) = module_of(param), base.specs[param].shape
            modules[name] = LoraModule(name, torch.ones(2, columns + more), torch.ones(out, 2), 2.0)
        save_adapter(Adapter(modules, {}, prefix="denoiser."), path)
        unknown = "does not say which base it was made from"
        with pytest.warns(LbmLoraWarning, match=unknown), pytest.warns(LbmLoraWarning, match="was made for SDXL"):
            given = read_given(chosen, base, fingerprint(base))
    assert given is not None
    assert given.params == [query]


def test_a_lora_names_its_base_and_the_configuration(base_fp32: Path, model: LBMModel, tmp_path: Path) -> None:
    config = TrainConfig(
        base_model_path=base_fp32,
        train_shards=("some/folder/a-{0..3}.tar",),
        save_ckpt_path=tmp_path / "run",
        lora_rank=4,
        lora_conv_rank=2,
    )
    trainee = make_trainee(model, config, None, None)
    with open_checkpoint(base_fp32) as checkpoint:
        found = fingerprint(checkpoint.component())
        write = result_writer(trainee, config, checkpoint, found, model.config, "")
        write(trainee.parameters, 7, tmp_path / "l.safetensors")
    adapter = load_adapter(tmp_path / "l.safetensors")
    assert trained_steps(tmp_path / "l.safetensors") == 7
    assert trained_steps(save_adapter(adapter, tmp_path / "copy.safetensors").path) is None, "no file of the training"
    assert adapter.metadata.base_fingerprint == found.digest
    facts = adapter.metadata.facts
    assert (facts["ss_network_dim"], json.loads(facts["ss_network_args"])) == ("4", {"conv_dim": 2})
    training = json.loads(facts["lbm_lora_training"])
    assert (training["step"], training["lora_rank"], training["learning_rate"]) == (7, 4, 1e-4)
    assert training["train_shards"] == ["a-{0..3}.tar"]
    assert training["base_model_path"] == "model.safetensors"
    assert str(tmp_path) not in json.dumps(dict(facts))
    places = {"save_ckpt_path", "cache_dir", "train_folder", "validation_folder", "resume"}
    assert training.keys() == {"step", *TrainConfig.model_fields} - places


def tuned_writer(model: LBMModel, base: Checkpoint) -> Write:
    config = TrainConfig(base_model_path=Path("b.safetensors"), train_folder=Path("pairs"), mode="full")
    found = fingerprint(base.component())
    return result_writer(FullModel(model.denoiser), config, base, found, model.config, "")


def test_a_value_beyond_the_dtype_of_the_base_is_not_written(base_fp32: Path, model: LBMModel, tmp_path: Path) -> None:
    values = {name: p.detach().clone() for name, p in model.denoiser.named_parameters()}
    with open_checkpoint(base_fp32) as checkpoint:
        half = {key: checkpoint.read(key).half() for key in checkpoint.specs}
    values["conv_in.weight"][0] = 70_000
    with (
        open_checkpoint(half) as base,
        pytest.raises(ConfigError, match=r"conv_in\.weight was trained to values beyond the range of .*, fp16\."),
    ):
        tuned_writer(model, base)(values, 7, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_full_training_writes_a_checkpoint_that_can_be_extracted_from(
    base_bf16: Path, tmp_path: Path, predict: Predict
) -> None:
    model = load_model(base_bf16, dtype=torch.float32)
    values = {name: p.detach() * 1.01 for name, p in model.denoiser.named_parameters()}
    path = tmp_path / "step-000007.safetensors"
    with open_checkpoint(base_bf16) as checkpoint:
        tuned_writer(model, checkpoint)(values, 7, path)
    with open_checkpoint(path) as tuned, open_checkpoint(base_bf16) as base:
        assert tuned.specs == base.specs
        assert len(pair(base.component(), tuned.component()).pairs) == len(values)
        assert torch.equal(tuned.component().read(ParamName("conv_in.weight")), values["conv_in.weight"].bfloat16())
        assert torch.equal(tuned.read("vae.vae_model.quant_conv.bias"), base.read("vae.vae_model.quant_conv.bias"))
    alone = tmp_path / "elsewhere" / path.name
    alone.parent.mkdir()
    path.rename(alone)  # no config.yaml beside it: its own says what the networks are
    again = load_model(alone, dtype=torch.float32)
    assert again.config.unet_config == model.config.unet_config
    assert not torch.equal(predict(again.denoiser), predict(model.denoiser))
