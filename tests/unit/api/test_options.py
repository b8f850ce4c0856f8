"""The options of a function are the fields of its config: names, types, defaults, texts."""

import inspect
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pydantic import BaseModel

import lbm_lora
from lbm_lora.api.options import Options
from lbm_lora.configs.data_check import CheckConfig
from lbm_lora.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Base:
    """A config's base."""

    rank: int = 32
    """Rank of a layer. Wins over --conv_rank,
    and --no_dense."""


@dataclass(frozen=True, kw_only=True)
class Config(Base):
    """A config."""

    where: Path
    """Where to write."""
    places: tuple[Path, ...] = ()
    dtype: Literal["float", "bf16"] | None = None
    """Precision."""
    images: str | None = None
    sizes: tuple[str, ...] = ()


class Model(BaseModel):
    """A config of pydantic's."""

    steps: tuple[int, ...] = (1, 2)
    """Steps, in their order."""
    rate: float


def work(first: int, *, save_to: str | None = None, progress: int = 0, **options: Any) -> str:
    """Do some work.

    Args:
        first: a number.

    Returns:
        A text.
    """
    return f"{first} {save_to} {progress} {options}"


def test_texts_are_those_below_the_fields_with_flags_as_names() -> None:
    assert Options(Base).fields["rank"].doc == "Rank of a layer. Wins over conv_rank, and no_dense."


def test_a_function_gets_the_signature_and_the_texts_of_its_options() -> None:
    documented = Options(Config, hidden=("where",)).documented(work)
    parameters = inspect.signature(documented).parameters
    assert list(parameters) == ["first", "save_to", "rank", "places", "dtype", "images", "sizes", "progress"]
    assert parameters["rank"].default == 32
    assert parameters["rank"].kind is Parameter.KEYWORD_ONLY
    doc = inspect.getdoc(documented)
    assert doc is not None
    assert doc.splitlines()[2:5] == [
        "Args:",
        "    first: a number.",
        "    rank: Rank of a layer. Wins over conv_rank, and no_dense.",
    ]
    assert doc.endswith("Returns:\n    A text.")


def test_types_are_wider_than_the_configs() -> None:
    fields = Options(Config).fields
    assert fields["where"].hint == Path | str
    assert fields["where"].default is Parameter.empty
    assert set(fields["dtype"].hint.__args__) == {Literal["float", "bf16"], torch.dtype, type(None)}
    assert Options(Model).fields["rate"].default is Parameter.empty
    assert Options(Model).fields["steps"].default == (1, 2)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"places": "a"}, {"places": (Path("a"),)}),
        ({"places": ["a", Path("b")]}, {"places": (Path("a"), Path("b"))}),
        ({"dtype": torch.float32, "images": Path("x")}, {"dtype": "float", "images": "x"}),
        ({"dtype": torch.bfloat16}, {"dtype": "bf16"}),
        ({"dtype": "bfloat16"}, {"dtype": "bf16"}),
        ({"dtype": "torch.float32"}, {"dtype": "float"}),
        ({"dtype": "fp32"}, {"dtype": "float"}),
        ({"images": "float32"}, {"images": "float32"}),
        ({"sizes": 2_000_000}, {"sizes": ("2000000",)}),
        ({"images": None, "rank": 4}, {"images": None, "rank": 4}),
    ],
)
def test_values_become_what_the_config_holds(options: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert Options(Config, hidden=("where",)).bind("work", options, where=Path("o")) == Config(
        where=Path("o"), **wanted
    )


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"rnak": 1}, TypeError, "work() got an unexpected keyword argument 'rnak'. Did you mean 'rank'?"),
        (
            {"where": "x"},
            TypeError,
            "work() got an unexpected keyword argument 'where'. Options: rank, places, dtype, images, sizes.",
        ),
        ({"dtype": "bf17"}, ConfigError, "dtype must be 'float' or 'bf16', got 'bf17'."),
        ({"dtype": torch.float16}, ConfigError, "dtype must be 'float' or 'bf16', got 'fp16'."),
        ({"rank": None}, ConfigError, "rank must be a valid integer, got None."),
    ],
)
def test_what_is_no_option_or_no_value_of_it_is_refused(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        Options(Config, hidden=("where",)).bind("work", options, where=Path("o"))
    assert str(caught.value) == text


def test_a_refusal_of_the_config_itself_keeps_its_words() -> None:
    """The error is a ValueError, which pydantic takes for its own."""
    with pytest.raises(ConfigError) as caught:
        Options(CheckConfig).bind("check_data", {})
    assert str(caught.value).startswith("Name the data to check: a folder, shards,")


@pytest.mark.parametrize(
    ("function", "config", "missing"),
    [
        (
            "extract",
            "ExtractConfig",
            {"create_base_model", "backbone_signature", "ranks", *("base_model_path", "tuned_model_path", "also")},
        ),
        ("layers", "LayersConfig", {"model_path"}),
        ("inspect", "InspectConfig", {"files", "base_model_path"}),
        ("fuse", "FuseConfig", {"base_model_path", "lora_path"}),
        (
            "validate",
            "ValidateConfig",
            {"base_model_path", "tuned_model_path", "lora_path", "layer_names", "fail_above", "fail_below_psnr"},
        ),
        (
            "infer",
            "InferConfig",
            {"base_model_path", "lora_path", "tuned_model_path", "source_image", "backbone_signature"},
        ),
    ],
)
def test_a_flag_is_an_option_or_is_left_out_on_purpose(function: str, config: str, missing: set[str]) -> None:
    flags = getattr(lbm_lora, config).__dataclass_fields__.keys()
    assert flags - inspect.signature(getattr(lbm_lora, function)).parameters.keys() == missing


def test_a_path_may_begin_with_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    def found(base: Path | str, *, save_to: Path | str | None = None, text: str = "", **options: Any) -> list[object]:
        return [base, save_to, text]

    call = Options(Config).documented(found)
    assert call("~/a", save_to="~/b", text="~/c") == [tmp_path / "a", tmp_path / "b", "~/c"]
    assert call("./~/a", save_to="b~") == ["./~/a", "b~", ""]
