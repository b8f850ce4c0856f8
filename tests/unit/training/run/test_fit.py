"""What ends a run before anything is read or written. Whole runs are in tests/e2e/test_training_runs.py."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest
from lightning.fabric import Fabric
from torch.distributed import DistError

from lbm_lora import held_folder
from lbm_lora.errors import ConfigError, DataError
from lbm_lora.training.run import fit as fit_module
from lbm_lora.training.run.fit import fit
from lbm_lora.training.run.learner import Learner
from lbm_lora.training.run.run_folder import RunFolder
from lbm_lora.training.settings.train_config import TrainConfig

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


def test_a_folder_in_which_another_run_is_training(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_folder, "PATIENCE", 0.0)
    chosen = config()
    assert chosen.base_model_path is not None
    with RunFolder(chosen.save_ckpt_path).held():
        with pytest.raises(
            ConfigError, match=r"^another run is training in .* right now\. Choose another save_ckpt_path"
        ):
            fit(chosen, chosen.base_model_path)
        assert list(chosen.save_ckpt_path.iterdir()) == []
        last = RunFolder(chosen.save_ckpt_path).last
        last.write_bytes(b"of the other run")
        with pytest.raises(ConfigError, match=r"right now"):  # and no advice to move its files
            fit(chosen, chosen.base_model_path)
    with pytest.raises(ConfigError, match=r"holds last\.safetensors of a run, but no resume\.pt"):
        fit(chosen, chosen.base_model_path)


def test_a_folder_in_which_another_run_has_trained_meanwhile(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = config()
    assert chosen.base_model_path is not None
    last, held = RunFolder(chosen.save_ckpt_path).last, RunFolder.held

    @contextmanager
    def held_after_another(folder: RunFolder) -> Generator[Callable[[], None]]:
        with held(folder) as check:
            last.write_bytes(b"of another run")
            yield check

    monkeypatch.setattr(RunFolder, "held", held_after_another)
    with pytest.raises(ConfigError, match=r"^another run has written to .* since this one began\. Start again to "):
        fit(chosen, chosen.base_model_path)
    assert last.read_bytes() == b"of another run"
    assert [path.name for path in chosen.save_ckpt_path.iterdir()] == [last.name]


def test_a_file_that_comes_while_the_other_processes_start_stays(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = config()
    assert chosen.base_model_path is not None
    last = RunFolder(chosen.save_ckpt_path).last
    monkeypatch.setattr(Fabric, "launch", lambda _: last.write_bytes(b"of another run"))
    with pytest.raises(ConfigError, match=r"^another run has written to .* since this one began\."):
        fit(chosen, chosen.base_model_path)
    assert last.read_bytes() == b"of another run"


def test_a_folder_in_which_another_run_has_started_meanwhile(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = config()
    assert chosen.base_model_path is not None
    folder, learn = chosen.save_ckpt_path, Learner.take_step

    def moved_away(learner: Learner, step: int) -> None:
        if not folder.with_name("old").exists():
            folder.rename(folder.with_name("old"))
            folder.mkdir()
            (folder / "last.safetensors").write_text("of another run")
        learn(learner, step)

    monkeypatch.setattr(Learner, "take_step", moved_away)
    with pytest.raises(
        ConfigError, match=r"was moved away while a run was training in it\. What is there now was kept"
    ):
        fit(chosen, chosen.base_model_path)
    assert [path.name for path in folder.iterdir()] == ["last.safetensors"]
    assert (folder / "last.safetensors").read_text() == "of another run"


def test_processes_with_other_settings_are_refused(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """One may have read the training file before it was edited, another one after it."""
    chosen = config()
    assert chosen.base_model_path is not None

    def first(_: Fabric, value: tuple[int, str]) -> tuple[int, str]:
        return value[0], value[1].replace('"seed":0', '"seed":1')

    monkeypatch.setattr(Fabric, "broadcast", first)
    with pytest.raises(ConfigError, match="process 0 has other settings than process 0: the training file"):
        fit(chosen, chosen.base_model_path)


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


def test_an_error_of_ours_keeps_its_name() -> None:
    with pytest.raises(RuntimeError, match="a defect"), fit_module._named_loss(2):
        raise RuntimeError("a defect")
