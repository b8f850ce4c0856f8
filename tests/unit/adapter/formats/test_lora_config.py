"""PEFT's config: the scaling of each layer, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lbm_lora.adapter.formats.lora_config import config_fields, config_of
from lbm_lora.errors import AdapterError
from lbm_lora.naming import ModuleName

WHERE = Path("adapter_config.json")
PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 8, "lora_alpha": 4}


@pytest.mark.parametrize(
    ("fields", "name", "rank", "alpha"),
    [
        ({}, "a.to_q", 8, 4.0),
        ({"r": 8.0, "lora_alpha": -3.4e38}, "a.to_q", 8, -3.4e38),
        ({"use_rslora": True}, "a.to_q", 8, 4 * math.sqrt(8)),
        ({"rank_pattern": {"to_q": 2}}, "a.to_q", 2, 4.0),
        ({"rank_pattern": {"to_q": 2}, "alpha_pattern": {"a.to_.": 6}}, "a.to_q", 2, 6.0),
        ({"rank_pattern": {"to_q": 2}}, "a.not_to_q", 8, 4.0),
        ({"rank_pattern": {"^to_q": 2}}, "a.to_q", 8, 4.0),
        ({"alpha_pattern": {"^to_q": 2}}, "to_q", 8, 2.0),
        ({"alpha_pattern": {"to_q": 1, "a.to_q": 2}}, "a.to_q", 8, 1.0),
        ({"lora_dropout": 0.1, "target_modules": "all-linear", "init_lora_weights": "gaussian"}, "x", 8, 4.0),
        ({"init_lora_weights": True, "bias": "all", "lora_bias": True, "some_new_field": None}, "x", 8, 4.0),
    ],
)
def test_alpha_of_a_layer(fields: dict[str, Any], name: str, rank: int, alpha: float) -> None:
    assert config_of(PLAIN | fields, WHERE).alpha_of(ModuleName(name), rank, WHERE) == alpha


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "OFT"}, "of PEFT's type OFT. LORA, LOHA, LOKR are read. For another one, fuse it into"),
        ({"peft_type": {"a": 1}}, "of PEFT's type {'a': 1}. LORA, LOHA, LOKR are read."),
        ({"r": "8"}, "has r '8'. It must be a whole number above 0."),
        ({"r": 0}, "has r 0. It"),
        ({"r": True}, "has r True. It"),
        ({"r": 1.5}, "has r 1.5. It"),
        ({"r": 10**39}, "has r 1000"),
        ({"r": None}, "has r None. It"),
        ({"rank_pattern": {"a": 0}}, "has rank_pattern of a 0. It must be a whole number above 0."),
        ({"rank_pattern": {"a": 2.5}}, "has rank_pattern of a 2.5. It"),
        ({"rank_pattern": [1]}, "has rank_pattern [1]. It must be an object of patterns."),
        ({"lora_alpha": 1e39}, "has lora_alpha 1e+39. It must be a number up to 3.4e38."),
        ({"lora_alpha": 10**400}, f"has lora_alpha 1{'0' * 59}. It"),
        ({"lora_alpha": float("nan")}, "has lora_alpha nan. It"),
        ({"lora_alpha": False}, "has lora_alpha False. It"),
        ({"peft_type": "LOHA", "alpha": -1e39}, "has alpha -1e+39. It"),
        ({"alpha_pattern": {"a": 1e39}}, "has alpha_pattern of a 1e+39. It"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights is pissa_niter_16"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights is loftq"),
        ({"fan_in_fan_out": True}, "the config asks for what is not read: fan_in_fan_out true"),
        ({"layer_replication": [[0, 4]]}, r"layer_replication [[0, 4]]"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"arrow_config": {"top_k": 3}}, "arrow_config"),
        ({"corda_config": {"corda_method": "kpm"}}, "corda_config"),
        ({"use_qalora": True, "trainable_token_indices": [3]}, "use_qalora true, trainable_token_indices [3]"),
        ({"some_new_field": 1}, "some_new_field 1"),
        ({"rank_pattern": {"(": 1}}, "rank_pattern of the LoRA's config has the pattern ("),
        ({"rank_pattern": {"(?R)": 1}}, "rank_pattern of the LoRA's config has the pattern (?R): unknown extension ?R"),
        ({"alpha_pattern": {"(?:a.*){e<=9}": 1}}, "has the pattern (?:a.*){e<=9}: a brace after which no number of"),
        ({"alpha_pattern": {"a": "b"}}, "has alpha_pattern of a 'b'. It"),
    ],
)
def test_what_changes_the_factors_meaning_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError) as error:
        config_of(PLAIN | fields, WHERE)
    assert message in str(error.value)


def test_the_config_of_factors_reads_back_with_a_scaling_of_one() -> None:
    ranks = {ModuleName("conv1"): 4, ModuleName("a.conv1"): 8, ModuleName("b"): 8}
    fields = json.loads(json.dumps(config_fields(ranks)))
    assert fields["rank_pattern"] == {"^conv1": 4}
    config = config_of(fields, WHERE)
    assert [config.alpha_of(name, rank, WHERE) for name, rank in ranks.items()] == [4, 8, 8]
    assert config_fields({ModuleName("a"): 2})["rank_pattern"] == {}
