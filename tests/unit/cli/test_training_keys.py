"""The keys of a training file on the command line of `train`."""

import pytest

from lbm_lora.cli.training_keys import check_keys, list_keys, text_keys, training_sections
from lbm_lora.configs.marks import Bounds
from lbm_lora.errors import ConfigError
from lbm_lora.training.settings import TrainConfig

KEYS = {key.name: key for section in training_sections().values() for key in section}


def test_every_key_is_in_one_section() -> None:
    assert sorted(KEYS) == sorted(TrainConfig.model_fields)
    assert sum(map(len, training_sections().values())) == len(TrainConfig.model_fields)


def test_a_key_has_the_default_the_choices_and_the_bounds_of_its_field() -> None:
    assert KEYS["learning_rate"].default == 1e-4
    assert KEYS["lora_rank"].bounds == Bounds(1)
    assert KEYS["max_corrupt"].bounds == Bounds(0, 1)
    assert KEYS["mode"].usage == "--mode lora|full"
    assert KEYS["resume"].usage == "--resume auto|never|FILE"
    assert KEYS["flip"].usage == "--flip true|false"
    assert KEYS["num_steps"].usage == "--num_steps N ..."


def test_keys_of_lists() -> None:
    assert {"num_steps", "train_shards", "image_size", "lora_target_modules"} <= list_keys()
    assert not list_keys() & {"seed", "rank_pattern", "train_folder"}


@pytest.mark.parametrize("key", ["learning-rate", "rank_pattern.ff.net"])
def test_keys_of_the_file_pass(key: str) -> None:
    check_keys([(key, "1")], [])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("learning_rte", "--learning_rte is not a flag of train. Did you mean --learning_rate?"),
        ("rank_patern.ff", "--rank_patern is not a flag of train. Did you mean --rank_pattern?"),
        ("resume_from_checkpoint", "--resume_from_checkpoint: use 'resume': auto, never, or a file."),
    ],
)
def test_other_keys_are_refused_with_the_nearest(key: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_keys([(key, "1")], [])
    assert str(caught.value) == message


def test_keys_of_texts() -> None:
    texts = text_keys()
    assert texts >= {"save_ckpt_path", "resume", "train_folder", "train_shards", "lora_weights_path", "mode", "device"}
    assert not texts & {"learning_rate", "flip", "num_steps", "optimizer_kwargs", "max_steps", "rank_pattern"}
