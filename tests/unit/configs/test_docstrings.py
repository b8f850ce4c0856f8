"""The text below a field is that of its option."""

from dataclasses import dataclass, fields

import pytest

from lbm_lora.configs import docstrings as module
from lbm_lora.configs.docstrings import docstrings
from lbm_lora.configs.extract import ExtractConfig
from lbm_lora.training.settings.train_config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Parent:
    count: int = 3
    """How many,
    at most."""
    where: str | None = None
    """Where."""


@dataclass(frozen=True, kw_only=True)
class Child(Parent):
    share: float = 1
    where: str = "here"
    """Where else."""


def test_docstrings_are_those_of_a_class_and_its_bases() -> None:
    assert docstrings(Child) == {"count": "How many, at most.", "where": "Where else."}


def test_every_option_of_ours_has_one() -> None:
    assert docstrings(ExtractConfig).keys() == {field.name for field in fields(ExtractConfig)}
    assert docstrings(TrainConfig).keys() >= TrainConfig.model_fields.keys()


def test_without_sources_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: object) -> str:
        raise OSError("source code not available")

    monkeypatch.setattr(module.inspect, "getsource", missing)
    assert docstrings.__wrapped__(Child) == {}
