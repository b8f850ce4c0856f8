"""Progress, Cancel, and messages in the terms of a node."""

import logging

import pytest
import torch
from comfy_standin import Interrupted, State

from lbm_lora.comfy.listener import NodeProgress, running
from lbm_lora.errors import ConfigError, MissingExtraError, Option
from lbm_lora.progress import Progress, warn


def test_progress_fills_the_bar_and_notices_cancel(comfy: State) -> None:
    progress = NodeProgress()
    assert isinstance(progress, Progress)
    progress.start(0, "loading")
    progress.advance()  # a phase of unknown length
    progress.start(3, "working")
    progress.advance(2)
    assert comfy.ticks == [3, 2]
    comfy.interrupted = True
    with pytest.raises(Interrupted):
        progress.advance()
    with pytest.raises(Interrupted):
        progress.start(0, "next")


def test_an_error_is_one_line_with_the_nodes_widgets() -> None:
    with pytest.raises(ConfigError) as found, running(lora_scale="blocks"):
        raise ConfigError(Option("lora_scale"), " is wrong.\n  See ", Option("dense", is_off=True), ".")
    assert str(found.value) == "'blocks' is wrong. See --no_dense (lbm-lora's command line)."


def test_a_missing_package_is_one_line_that_says_how_to_install_it() -> None:
    with (
        pytest.raises(MissingExtraError, match=r"needs: No module named 'nonsuch'.* -m pip install lbm-lora$"),
        running(),
    ):
        __import__("nonsuch")


def test_warnings_are_lines_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "lbm_lora"), running("rank"):
        warn("too\nhigh: ", Option("rank"))
    assert caplog.messages == ["too high: 'rank'"]


def test_only_sampling_stays_in_inference_mode() -> None:
    with torch.inference_mode():
        with running():
            assert not torch.is_inference_mode_enabled()
        with running(is_sampling=True):
            assert torch.is_inference_mode_enabled()
