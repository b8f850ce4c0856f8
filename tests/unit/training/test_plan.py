"""What learns: modules, ranks and alphas by pattern."""

from collections.abc import Callable

import pytest
import torch

from lbm_lora.adapter import Adapter, LoraModule
from lbm_lora.errors import AdapterError, ConfigError, PatternError
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.training.lora import layout_of, plan_continued, plan_new
from lbm_lora.training.settings import ModelSettings
from smallnet import OneOfEach

Settings = Callable[..., ModelSettings]


LAYOUT = layout_of(OneOfEach())


def ranks(settings: ModelSettings) -> dict[str, int]:
    return {lora.name: lora.rank for lora in plan_new(LAYOUT, settings).loras}


def scalings(settings: ModelSettings) -> dict[str, float]:
    return {lora.name: lora.alpha / lora.rank for lora in plan_new(LAYOUT, settings).loras}


def adapter(*names: str) -> Adapter:
    """An adapter of rank 2 and alpha 3 on modules of `OneOfEach`."""
    shapes = {name: LAYOUT.layers.get(ModuleName(name), (8, 8)) for name in names}
    modules = {
        ModuleName(name): LoraModule(
            ModuleName(name),
            torch.ones(2, *shape[1:]),
            torch.ones(shape[0], 2, *(1 for _ in shape[2:])),
            3.0,
        )
        for name, shape in shapes.items()
    }
    return Adapter(modules, {ParamName("norm.bias"): torch.ones(8)}, prefix="denoiser.")


def test_all_layers_and_ranks_capped_by_the_matrix(settings: Settings) -> None:
    assert ranks(settings(lora_rank=7, lora_conv_rank=3)) == {"conv_in": 3, "conv_out": 2, "attn1": 7, "attn2": 6}


@pytest.mark.parametrize("values", [{}, {"lora_alpha": 8.0, "lora_conv_alpha": 4.0}, {"lora_alpha": 24.0}])
def test_a_lowered_rank_keeps_the_scaling_that_was_asked_for(settings: Settings, values: dict[str, float]) -> None:
    made = scalings(settings(lora_rank=8, lora_conv_rank=4, **values))
    assert made["attn2"] == made["attn1"] == values.get("lora_alpha", 8.0) / 8
    assert made["conv_out"] == made["conv_in"] == values.get("lora_conv_alpha", 4.0) / 4


def test_the_last_pattern_that_matches_counts(settings: Settings) -> None:
    chosen = settings(
        lora_rank=4, rank_pattern={"attn": 2, "re:attn1$": 1, "conv_*": 2}, alpha_pattern={"denoiser.attn2": 6.0}
    )
    assert ranks(chosen) == {"conv_in": 2, "conv_out": 2, "attn1": 1, "attn2": 2}
    assert scalings(chosen) == {"conv_in": 1, "conv_out": 1, "attn1": 1, "attn2": 3}


@pytest.mark.parametrize("key", ["lora_target_modules", "trainable_lora_modules"])
def test_a_pattern_without_a_match_names_the_nearest(settings: Settings, key: str) -> None:
    with pytest.raises(PatternError, match=r"'atn1' matches none .* Nearest: .*attn1"):
        plan_new(LAYOUT, settings(lora_rank=4, **{key: ("atn1",)}))


def test_biases_and_norms_learn_on_request(settings: Settings) -> None:
    assert plan_new(LAYOUT, settings(lora_rank=4)).dense == ()
    chosen = settings(lora_rank=4, lora_target_modules=("attn",), train_biases=True, train_norms=True)
    assert plan_new(LAYOUT, chosen).dense == ("attn2.bias", "norm.weight", "norm.bias")


def test_a_continued_lora_has_the_ranks_of_the_file(settings: Settings) -> None:
    chosen = settings(lora_weights_path="l.safetensors", trainable_lora_modules=("attn",))
    plan = plan_continued(LAYOUT, chosen, adapter("attn2", "conv_in"))
    assert [(lora.name, lora.rank, lora.alpha, lora.learns) for lora in plan.loras] == [
        ("conv_in", 2, 3.0, False),
        ("attn2", 2, 3.0, True),
    ]
    assert plan.dense == ()


def test_a_continued_lora_must_fit(settings: Settings) -> None:
    chosen = settings(lora_weights_path="l.safetensors")
    with pytest.raises(AdapterError, match=r"1 of its modules are neither Linear nor plain Conv2d .*: grouped"):
        plan_continued(LAYOUT, chosen, adapter("attn1", "grouped"))
    with pytest.raises(ConfigError, match="has no trainable modules"):
        plan_continued(LAYOUT, chosen, adapter())
