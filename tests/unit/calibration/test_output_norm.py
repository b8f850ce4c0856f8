"""Statistics as an extraction uses them: of the same model, of all its modules, and LoRAs tried where there are any."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lbm_lora.calibration import Statistics, load_statistics, output_norm, save_statistics
from lbm_lora.checkpoint import fingerprint, open_checkpoint
from lbm_lora.errors import CheckpointError
from lbm_lora.extraction import Plan, plan_extraction
from lbm_lora.naming import ModuleName
from lbm_lora.progress import SILENT
from lbm_lora.ranks import OutputNorm


@pytest.fixture
def plan_of(statistics: Statistics, tmp_path: Path) -> Callable[..., Plan]:
    """`plan_of("a", "b")`: weights of those modules, in the shapes that were measured."""

    def plan(*modules: str) -> Plan:
        found = {name: layer.shape for name, layer in statistics.layers.items()}
        for side, value in (("base", 0.0), ("tuned", 1.0)):
            tensors = {f"{name}.weight": torch.full(found.get(ModuleName(name), (4, 4)), value) for name in modules}
            save_file(tensors, tmp_path / f"{side}.safetensors")
        base, tuned = (open_checkpoint(tmp_path / f"{side}.safetensors").component() for side in ("base", "tuned"))
        return plan_extraction(base, tuned)

    return plan


def norm_of(statistics: Statistics, plan: Plan, folder: Path, **changes: Any) -> OutputNorm:
    """That of the statistics, measured on the plan's tuned file."""
    tuned = fingerprint(plan.pairing.tuned).digest
    measured = replace(statistics, origin=replace(statistics.origin, tuned=changes.pop("measured_on", tuned)))
    save_statistics(measured, folder / "s.safetensors")
    defaults: dict[str, Any] = {"images": (), "is_checked": False}
    return output_norm(
        load_statistics(folder / "s.safetensors"),
        plan,
        path=folder / "s.safetensors",
        config_path=None,
        device=torch.device("cpu"),
        progress=SILENT,
        **defaults | changes,
    )


def test_statistics_of_another_model_are_refused(
    statistics: Statistics, plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    text = r"s\.safetensors was measured on another model than \S+tuned\.safetensors\. Create it for this one: "
    with pytest.raises(CheckpointError, match=text):
        norm_of(statistics, plan_of("conv_in"), tmp_path, measured_on="another")


def test_modules_that_the_model_does_not_call_are_counted_and_one_is_named(
    statistics: Statistics, plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as caught:
        norm_of(statistics, plan_of("conv_in", "idle.a", "idle.b"), tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/s.safetensors has no statistics for 2 modules, such as idle.a: the model does not call them. "
        "Leave them out: exclude 'idle.a'."
    )
