"""What ends a run before anything is read or written. Whole runs are in tests/e2e/test_training_runs.py."""

from collections.abc import Callable
from typing import Any

import pytest
from torch.distributed import DistError

from lbm_lora.errors import ConfigError, DataError
from lbm_lora.training import checkpoint
from lbm_lora.training import fit as fit_module
from lbm_lora.training.checkpoint import RunFolder
from lbm_lora.training.fit import fit
from lbm_lora.training.learner import Learner
from lbm_lora.training.settings import TrainConfig

Config = Callable[..., TrainConfig]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_dtype": "fp16"}, "base_dtype must be bf16 or float, got fp16"),
        ({"base_dtype": "bf16"}, "precision 32 computes in fp32, but base_dtype bf16"),
        ({"optimizer_kwargs": {"differentiable": True}}, "optimizer AdamW .* cannot take a step on cpu: "),
        ({"optimizer": "Muon"}, "optimizer Muon cannot train the chosen parameters: "),
        ({"accumulate": 1000}, "do not fill one step with accumulate 1000"),
    ],
)
def test_impossible_settings(config: Config, values: dict[str, Any], message: str) -> None:
    chosen = config(max_steps=None, **values)
    assert chosen.base_model_path is not None
    with pytest.raises(ConfigError, match=message):
        fit(chosen, chosen.base_model_path)
    assert not chosen.save_ckpt_path.exists()


def test_one_run_at_a_time_trains_in_a_folder(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_PATIENCE", 0.0)
    chosen = config(max_steps=1)
    assert chosen.base_model_path is not None
    with (
        RunFolder(chosen.save_ckpt_path).held(),
        pytest.raises(ConfigError, match=r"^another run is training in .* right now\. Choose another save_ckpt_path"),
    ):
        fit(chosen, chosen.base_model_path)
    assert not chosen.save_ckpt_path.exists()
    assert fit(chosen, chosen.base_model_path).standing.step == 1
    assert not (chosen.save_ckpt_path / ".lock").exists()


@pytest.mark.parametrize("error", [RuntimeError("[gloo/transport/tcp/pair.cc:553] closed"), DistError("NCCL")])
def test_the_loss_of_another_process_is_named(
    config: Config, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise error

    chosen = config()
    assert chosen.base_model_path is not None
    monkeypatch.setattr(Learner, "add_gradients", lost)
    with pytest.raises(type(error)):
        fit(chosen, chosen.base_model_path)
    named = r"another process of this run has ended\. Start the run again to go on"
    with pytest.raises(DataError, match=named), fit_module._named_loss(2):
        raise error
