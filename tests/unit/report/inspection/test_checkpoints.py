"""What is found out about a checkpoint: its parts, its fingerprint, its role, and broken values."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lbm_lora.checkpoint import fingerprint, open_checkpoint
from lbm_lora.report.inspection.checkpoints import checkpoint_facts
from lbm_lora.report.inspection.values import CheckpointFacts

Rand = Callable[..., Tensor]


def facts_of(state: dict[str, Tensor], *, is_exact_base: bool = False, known: bool = False) -> CheckpointFacts:
    checkpoint = open_checkpoint(state)
    names = {fingerprint(checkpoint.component()).digest: "the one"} if known else {}
    return checkpoint_facts(checkpoint, names, is_exact_base=is_exact_base, config="in the file")[0]


@pytest.fixture
def state(rand: Rand) -> dict[str, Tensor]:
    return {
        "denoiser.up_blocks.0.a.weight": rand(4, 3).bfloat16(),
        "denoiser.conv_in.weight": rand(4, 4, 3, 3),
        "vae.x": rand(5),
        "num_iterations": torch.tensor(0.0),
    }


def test_its_components_and_blocks(state: dict[str, Tensor]) -> None:
    found = facts_of(state)
    assert [(one.name, one.tensors, one.nbytes) for one in found.components] == [
        ("denoiser", 2, 24 + 576),
        ("vae", 1, 20),
        ("num_iterations", 1, 4),
    ]
    assert found.components[0].dtypes == {"bf16": 1, "fp32": 1}
    assert [block.block for block in found.blocks] == ["conv_in", "up_blocks.0"]  # as the image flows
    norms = [float(state[f"denoiser.{name}"].float().norm()) for name in ("conv_in.weight", "up_blocks.0.a.weight")]
    assert [block.norm for block in found.blocks] == pytest.approx(norms, rel=1e-6)
    assert sum(block.share for block in found.blocks) == pytest.approx(1)
    assert found.fingerprint == fingerprint(open_checkpoint(state).component()).digest


def test_what_it_looks_like(state: dict[str, Tensor]) -> None:
    trained = state | {"num_iterations": torch.tensor(1200.0)}
    assert facts_of(state).role == ""
    assert facts_of(state, is_exact_base=True).role == "exact base"
    assert (facts_of(trained).role, facts_of(trained).role_reason) == ("tuned", "counts 1,200 training iterations")
    assert facts_of(trained, known=True).known_as == "the one"


def test_values_that_are_not_finite_are_named(state: dict[str, Tensor]) -> None:
    state["denoiser.conv_in.weight"][0, 0, 0, 0] = math.inf
    assert facts_of(state).broken == ("conv_in.weight",)


def test_a_file_without_an_lbms_names_is_not_compared_with_lbm(rand: Rand) -> None:
    found = facts_of({"encoder.0.weight": rand(2, 2)})
    assert found.coverage is None
    assert [one.name for one in found.components] == ["encoder"]
