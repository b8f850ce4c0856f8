"""Any network through the public page: calibrated, extracted, and its outputs compared."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lbm_lora
from lbm_lora import ConfigError, LbmLoraWarning, OutputError
from lbm_lora.fidelity.network import Run


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 32)
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.mix = nn.Conv1d(32, 32, 3, padding=1)
        self.layers = nn.ModuleList([nn.Linear(32, 32) for _ in range(3)])

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.words(tokens) * torch.linspace(2, 0.05, 32)  # channels of unequal size
        hidden = hidden + self.attention(hidden, hidden, hidden)[0] + self.mix(hidden.mT).mT
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        return hidden


def encoder(seed: int) -> Encoder:
    torch.manual_seed(0)
    made = Encoder().eval()
    torch.manual_seed(seed)
    for name, value in made.named_parameters():
        value.data += 0.0 if "words" in name or "out_proj" in name else 0.03 * torch.randn(value.shape)
    return made


def runner(module: nn.Module, count: int = 6, seed: int = 0) -> Run:
    draw = torch.Generator().manual_seed(seed)
    data = [torch.randint(0, 50, (1, 7), generator=draw) for _ in range(count)]

    def run() -> Iterator[Tensor]:
        for tokens in data:
            yield module(tokens)

    return run


def test_a_calibrated_lora_of_any_network_is_closer_than_a_plain_one(tmp_path: Path) -> None:
    base, tuned = encoder(1), encoder(2)
    statistics = lbm_lora.calibrate(tuned, runner(tuned), save_to=tmp_path / "s.safetensors")
    loras = [
        lbm_lora.extract(base, tuned, rank=4, device="cpu", save_precision="fp16", calibration=calibration)
        for calibration in (None, statistics, tmp_path / "s.safetensors")
    ]
    found = [lbm_lora.validate_outputs(base, tuned, lora, runner(tuned, seed=1)).typical for lora in loras]
    assert found[1] == pytest.approx(found[2], rel=1e-3)  # a file holds two bytes a value
    assert found[1] < 0.9 * found[0]


class Narrow(nn.Module):
    """Two kinds of words, whose embeddings share no channel."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 32)
        self.layers = nn.ModuleList([nn.Linear(32, 32, bias=False) for _ in range(2)])

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.words(tokens)
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        return hidden


def narrow(seed: int) -> Narrow:
    torch.manual_seed(0)
    made = Narrow().eval()
    made.words.weight.data[:4, 16:] = made.words.weight.data[4:, :16] = 0
    torch.manual_seed(seed)
    for layer in made.layers:
        layer.weight.data += 0.05 * torch.randn(32, 32)  # pyright: ignore[reportOperatorIssue]
    return made


def test_a_lora_calibrated_on_some_words_is_not_worse_than_a_plain_one_on_others() -> None:
    base, tuned = narrow(1), narrow(2)
    before = {name: value.data_ptr() for name, value in tuned.state_dict().items()}
    data = [torch.randint(0, 4, (1, 7)) for _ in range(8)]

    def run() -> Iterator[Tensor]:
        for tokens in data:
            yield tuned(tokens)

    def others() -> Iterator[Tensor]:
        for first in range(4, 44, 10):
            yield tuned(torch.arange(first, first + 7)[None])

    statistics = lbm_lora.calibrate(tuned, run)
    options: dict[str, Any] = {"rank": 6, "device": "cpu", "save_precision": "float"}
    plain = lbm_lora.extract(base, tuned, **options)
    trusting = lbm_lora.extract(base, tuned, calibration=statistics, **options)
    checked = lbm_lora.extract(base, tuned, calibration=statistics, run=run, **options)
    found = [lbm_lora.validate_outputs(base, tuned, lora, others).typical for lora in (plain, trusting, checked)]
    assert found[1] > 1.1 * found[0]
    assert found[2] < 1.05 * found[0]
    assert checked.shrinkage is not None
    assert checked.shrinkage.kind != "given"
    assert checked.predicted is not None
    assert checked.predicted.shifted == {"content": pytest.approx(found[2], rel=0.5)}
    assert {name: value.data_ptr() for name, value in tuned.state_dict().items()} == before
    with pytest.raises(ConfigError, match="run needs calibration, and tuned must be the module that it runs"):
        lbm_lora.extract(base, tuned.state_dict(), calibration=statistics, run=run)


def test_changed_weights_that_are_no_matrices_stay_dense() -> None:
    base, tuned = encoder(1), encoder(2)
    for weight in (tuned.words.weight, tuned.attention.out_proj.weight):
        weight.data[3] += 1
    statistics = lbm_lora.calibrate(tuned, runner(tuned))
    with pytest.warns(LbmLoraWarning, match=r"^words \(Embedding\), attention\.out_proj \(part of Mul"):
        lora = lbm_lora.extract(base, tuned, calibration=statistics, device="cpu", rank=2)
    assert {"words.weight", "attention.out_proj.weight", "attention.in_proj_weight", "mix.weight"} <= set(lora.dense)
    assert set(lora.modules) == {"layers.0", "layers.1", "layers.2"}


def test_a_module_goes_with_a_callable_and_other_statistics_are_refused(tmp_path: Path) -> None:
    base, tuned = encoder(1), encoder(2)
    with pytest.raises(ConfigError, match="a module needs a callable that runs it; a checkpoint needs images"):
        lbm_lora.calibrate(tuned, tmp_path)
    with pytest.raises(ConfigError, match="timesteps is for a checkpoint and images, not for a module"):
        lbm_lora.calibrate(tuned, runner(tuned), timesteps=(1,))
    statistics = lbm_lora.calibrate(base, runner(base), names="layers.1")
    with pytest.raises(lbm_lora.CheckpointError, match="was measured on another model than tuned state dict"):
        lbm_lora.extract(base, tuned, calibration=statistics)
    with pytest.raises(lbm_lora.CheckpointError, match=r"layers\.0: the model does not call them, or they were not"):
        lbm_lora.extract(tuned, base, calibration=statistics)


def test_statistics_replace_no_file_of_somebody_else(tmp_path: Path) -> None:
    tuned, path = encoder(1), tmp_path / "s.safetensors"
    path.write_text("theirs")

    def run() -> Iterator[Tensor]:
        raise AssertionError("it ran")

    with pytest.raises(OutputError, match=r"s\.safetensors exists, and lbm-lora did not write it"):
        lbm_lora.calibrate(tuned, run, save_to=path)
    assert path.read_text() == "theirs"
    lbm_lora.calibrate(tuned, runner(tuned), names="layers.1", save_to=path, overwrite=True)
    lbm_lora.calibrate(tuned, runner(tuned), names="layers.1", save_to=path)
