"""The keys of a training file on the command line of `train`."""

from typing import Any

import pytest

from lbm_lora.cli.flags import Bounds, flags_of
from lbm_lora.cli.training_keys import split_keys, training_sections
from lbm_lora.errors import ConfigError
from lbm_lora.training.settings import TrainConfig
from lbm_lora.verbs import verb_named

KEYS = {key.name: key for section in training_sections().values() for key in section}
OWN = flags_of(verb_named("train").function)


def test_every_key_is_in_one_section() -> None:
    assert sorted(KEYS) == sorted(TrainConfig.model_fields)
    assert sum(map(len, training_sections().values())) == len(TrainConfig.model_fields)


def test_a_key_has_the_default_the_choices_and_the_bounds_of_its_field() -> None:
    assert KEYS["learning_rate"].default == 1e-4
    assert (KEYS["lora_rank"].bounds, KEYS["max_corrupt"].bounds) == (Bounds(1), Bounds(0, 1))
    assert KEYS["mode"].usage == "--mode lora|full"
    assert KEYS["resume"].usage == "--resume auto|never|FILE"
    assert KEYS["flip"].usage == "--flip true|false"
    assert KEYS["num_steps"].usage == "--num_steps N ..."


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        ("", {}),
        ("--learning-rate=1e-4 --learning_rate 2e-4", {"learning_rate": 2e-4}),
        ("--logit_mean -0.5", {"logit_mean": -0.5}),
        ("--num_steps 1 2", {"num_steps": [1, 2]}),
        ("--num-steps 4", {"num_steps": [4]}),
        ("--num_steps [4]", {"num_steps": [4]}),
        ("--num_steps null --train_folder null", {"num_steps": None, "train_folder": None}),
        ("--flip --seed 3", {"flip": True, "seed": 3}),
        ("--rank_pattern.ff.net 8", {"rank_pattern.ff.net": 8}),
        ("--trainable_lora_modules attn1 re:^a,b$", {"trainable_lora_modules": ["attn1", "re:^a,b$"]}),
        ("--train_folder 2024 --save_ckpt_path r#2", {"train_folder": "2024", "save_ckpt_path": "r#2"}),
        ("--train_shards true 'x'", {"train_shards": ["true", "'x'"]}),
    ],
)
@pytest.mark.parametrize("own", [["--path_config", "t.yaml", "--overwrite"], ["--path-config=t.yaml"], ["-h"]])
def test_other_flags_are_keys_of_the_file(own: list[str], line: str, keys: dict[str, Any]) -> None:
    assert split_keys([*own, *line.split()], OWN) == (own, keys)
    assert split_keys([*line.split(), *own], OWN) == (own, keys)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.yaml", "'config.yaml' belongs to no flag. A training file is given by --path_config."),
        ("--learning_rte 1", "--learning_rte is not a flag of train. Did you mean --learning_rate?"),
        ("--rank_patern.ff 1", "--rank_patern is not a flag of train. Did you mean --rank_pattern?"),
        ("--resume_from_checkpoint x", "--resume_from_checkpoint: use 'resume': auto, never, or a file."),
    ],
)
def test_other_words_are_refused_with_the_nearest_key(line: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split_keys(line.split(), OWN)
    assert str(caught.value) == message
