"""Messages of a node: progress on ComfyUI's bar, notes and warnings in its log, errors as one line in its box."""

import logging
import sys
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from lbm_lora.errors import LbmLoraError, MissingExtraError, Option, spelled
from lbm_lora.progress import LbmLoraWarning

_LOG = logging.getLogger("lbm_lora")


class NodeProgress:
    """A listener that fills ComfyUI's progress bar of the running node. Each tick also looks for Cancel."""

    def __init__(self) -> None:
        self._bar: Any = None

    def start(self, total: int, what: str) -> None:
        """A phase begins; without a known number of parts the bar stays empty."""
        from comfy.model_management import (  # pyright: ignore[reportMissingImports]
            throw_exception_if_processing_interrupted,
        )
        from comfy.utils import ProgressBar  # pyright: ignore[reportMissingImports]

        throw_exception_if_processing_interrupted()
        self._bar = ProgressBar(total) if total else None
        _LOG.info("%s", what)

    def advance(self, n: int = 1) -> None:
        """`n` parts are done."""
        if self._bar is not None:
            self._bar.update(n)

    def note(self, message: str) -> None:
        """Write a line to the log."""
        _LOG.info("%s", message)


def as_widget(widgets: Mapping[str, str]) -> Callable[[Option], str]:
    """Return the spelling of options by the widgets of a node.

    Args:
        widgets: option -> widget, where their names differ. An option without a widget is one of the command line only.
    """

    def spelling(option: Option) -> str:
        if option.name in widgets:
            value = "" if option.value.isupper() else option.value.replace("|", " or ")
            return f"'{widgets[option.name]}' {value}".rstrip()
        return f"--{'no_' if option.is_off else ''}{option.name} (lbm-lora's command line)"

    return spelling


@contextmanager
def running(*widgets: str, is_sampling: bool = False, **renamed: str) -> Generator[None]:
    """Run a node: errors and warnings become one line each, in the terms of its widgets.

    Args:
        widgets: those that are called as their options.
        renamed: option -> widget, for others.
        is_sampling: stay in ComfyUI's inference mode. All else leaves it: models that are changed, and gradients, need
            tensors that know their versions.
    """
    spelling, caught = as_widget({**{name: name for name in widgets}, **renamed}), list[warnings.WarningMessage]()
    try:
        with warnings.catch_warnings(record=True) as caught, torch.inference_mode(mode=is_sampling):
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", LbmLoraWarning)
            yield
    except LbmLoraError as error:
        raise type(error)(_one_line(spelled(error.args, spelling))) from None
    except ImportError as error:
        raise MissingExtraError(
            f"lbm-lora cannot import a package that this node needs: {_one_line(str(error))} Install it into the "
            f"Python that runs ComfyUI: {sys.executable} -m pip install lbm-lora"
        ) from error
    finally:
        for one in caught:
            _LOG.warning("%s", _one_line(spelled(getattr(one.message, "args", ()), spelling)))


def _one_line(text: str) -> str:
    return " ".join(text.split())
