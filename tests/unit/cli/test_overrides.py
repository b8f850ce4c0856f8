"""`--any.key value`: which words are the command's own, and what the others say as YAML."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lbm_lora.cli.overrides import split_overrides
from lbm_lora.errors import ConfigError
from lbm_lora.text import parse_yaml

OWN = ("path_config", "json", "no_json", "verbose", "no_verbose", "debug", "no_debug", "threads")
PATTERNS = st.text("abz:.,^[]{}", min_size=1, max_size=6).map("m_{}_".format)
WORDS = st.lists(st.integers() | PATTERNS, min_size=2, max_size=5)


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        ([], ()),
        (["--learning_rate", "1e-4"], (("learning_rate", "1e-4"),)),
        (["--learning-rate=1e-4"], (("learning-rate", "1e-4"),)),
        (["--logit_mean", "-0.5"], (("logit_mean", "-0.5"),)),
        (["--num_steps", "1", "2"], (("num_steps", "[1, 2]\n"),)),
        (["--flip", "--seed", "3"], (("flip", "true"), ("seed", "3"))),
        (["--rank_pattern.ff.net", "8"], (("rank_pattern.ff.net", "8"),)),
        (["--trainable_lora_modules", "attn1", "re:^a,b$"], (("trainable_lora_modules", "[attn1, 're:^a,b$']\n"),)),
    ],
)
@pytest.mark.parametrize("own", [["--path_config", "t.yaml", "--json"], ["--path-config=t.yaml"]])
def test_other_flags_are_keys_of_the_file(
    own: list[str], words: list[str], overrides: tuple[tuple[str, str], ...]
) -> None:
    assert split_overrides([*own, *words], OWN) == (own, overrides)
    assert split_overrides([*words, *own], OWN) == (own, overrides)


@pytest.mark.parametrize(
    ("words", "text"),
    [(["4"], "[4]\n"), (["4", "2"], "[4, 2]\n"), (["[4]"], "[4]"), (["null"], "null")],
)
def test_a_key_that_takes_a_list_takes_one_word_as_well(words: list[str], text: str) -> None:
    assert split_overrides(["--num-steps", *words], OWN, {"num_steps"}) == ([], (("num-steps", text),))


def test_a_stray_word_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"'config.yaml' belongs to no flag"):
        split_overrides(["config.yaml"], OWN)


@given(words=WORDS)
def test_several_words_are_the_list_of_them(words: list[int | str]) -> None:
    _, ((key, text),) = split_overrides(["--some.key", *map(str, words)], OWN)
    assert key == "some.key"
    assert yaml.safe_load(text) == words
    assert split_overrides([f"--some.key={words[0]}", *map(str, words[1:])], OWN) == ([], ((key, text),))


@pytest.mark.parametrize("word", ["{a", "a: b: c"])
def test_a_word_that_is_no_yaml_is_a_text(word: str) -> None:
    _, ((_, text),) = split_overrides(["--key", word, "1"], OWN)
    assert yaml.safe_load(text) == [word, 1]


@pytest.mark.parametrize("spelled", [str, lambda name: name.replace("_", "-")], ids=["underscores", "hyphens"])
@pytest.mark.parametrize("name", ["path_config", "no_json"])
def test_flags_of_the_command_are_no_keys(name: str, spelled: type[str]) -> None:
    arguments = ["--seed", "1", f"--{spelled(name)}"]
    assert split_overrides(arguments, OWN) == (arguments[2:], (("seed", "1"),))


@pytest.mark.parametrize("word", ["run #2", "2024", "0123", "1e3", "true", "a: b", "r\nx", "'x'", "[a]", "é", "~"])
def test_words_of_text_keys_are_no_yaml(word: str) -> None:
    """A path may be whatever the shell gives, and not the part before a comment."""
    _, ((_, text),) = split_overrides(["--folder", word], OWN, texts={"folder"})
    assert parse_yaml(text) == word
    _, ((_, text),) = split_overrides(["--folders", word, "b"], OWN, {"folders"}, {"folders"})
    assert parse_yaml(text) == [word, "b"]


def test_a_text_key_may_still_be_null_and_a_list_be_in_brackets() -> None:
    assert split_overrides(["--folder", "null"], OWN, texts={"folder"}) == ([], (("folder", "null"),))
    assert split_overrides(["--folders", "[a, b]"], OWN, {"folders"}, {"folders"}) == ([], (("folders", "[a, b]"),))
