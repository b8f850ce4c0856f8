"""Sums of a calibration: nothing is lost on the way through a file, and another run's are not taken."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lbm_lora.calibration import CalledLayer, Origin, PartialFile, Sums
from lbm_lora.errors import ConfigError, OutputError
from lbm_lora.late_files import notes_of_one_call
from lbm_lora.naming import ModuleName, ParamName

Q, K, CONV = ModuleName("z.attn1.to_q"), ModuleName("a.attn1.to_k"), ModuleName("m.conv")
LAYERS = {
    Q: CalledLayer(shape=(3, 12), inputs=Q),
    K: CalledLayer(shape=(5, 12), inputs=Q),
    CONV: CalledLayer(shape=(10, 6, 3, 3), inputs=CONV),
}
VECTORS = {ParamName("m.conv.bias"): 10, ParamName("n.weight"): 65}
ORIGIN = Origin(
    tuned="abc",
    images="def",
    count=2,
    schedule=((1000.0, 0.75), (250.0, 0.25)),
    probes=1,
    size=None,
    seed=3,
    dense_up_to=8,
    sketch_rank=2,
    dtype="fp32",
)
CPU = torch.device("cpu")


def add_image(sums: Sums, seed: int) -> None:
    """Random rows for every layer, and a gradient."""
    draw = torch.Generator().manual_seed(seed)
    for side in (sums.inputs, sums.outputs):
        for name, accumulator in side.items():
            size = LAYERS[name].shape[1 if side is sums.inputs else 0]
            accumulator.add(torch.randn(7, size, generator=draw), weight=0.5)
    for name, accumulator in sums.vectors.items():
        accumulator.add(torch.randn(1, VECTORS[name], generator=draw), weight=0.5)
    for place, name in enumerate(sums.gradients):
        sums.gradients[name] += seed + 0.1 * place
    sums.images += 1
    sums.values += 64.0
    sums.energy += 1 / 3


@pytest.fixture
def sums() -> Sums:
    """Of one image; sides up to 8 are kept whole, wider ones as a sketch."""
    made = Sums.empty(LAYERS, VECTORS, dense_up_to=8, sketch_rank=2, seed=3, device=CPU)
    add_image(made, 1)
    return made


def copied(sums: Sums) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in sums.state().items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert torch.equal(tensor, other[key]), key


def test_layers_of_one_input_share_its_sums() -> None:
    made = Sums.empty(LAYERS, VECTORS, dense_up_to=8, sketch_rank=2, seed=3, device=CPU)
    assert (list(made.inputs), list(made.outputs)) == ([Q, CONV], [Q, K, CONV])
    assert made.gradients == {Q: 0.0, K: 0.0, CONV: 0.0}
    state = made.state()
    assert state[f"inputs.{Q}.sketch"].shape == (12, 2)
    assert state[f"inputs.{CONV}.dense"].shape == (6, 6)  # of its channels, whatever the kernel
    assert state[f"outputs.{CONV}.diagonal"].shape == (10,)


@pytest.mark.parametrize(
    ("most", "key", "shape"), [(0, "dense", (6, 6)), (53, "sketch", (54, 2)), (54, "dense", (54, 54))]
)
def test_convs_have_sums_of_all_that_the_kernel_covers(most: int, key: str, shape: tuple[int, int]) -> None:
    made = Sums.empty(LAYERS, VECTORS, dense_up_to=8, sketch_rank=2, conv_dense_up_to=most, seed=3, device=CPU)
    assert made.state()[f"inputs.{CONV}.{key}"].shape == shape
    assert made.inputs[Q].size == 12


def test_long_vectors_have_a_narrow_sketch() -> None:
    state = Sums.empty(LAYERS, VECTORS, dense_up_to=8, sketch_rank=2, seed=3, device=CPU).state()
    assert state["vectors.m.conv.bias.dense"].shape == (10, 10)
    assert state["vectors.n.weight.sketch"].shape == (65, 16)


def test_a_file_gives_back_what_was_saved_and_it_goes_on_the_same(sums: Sums, tmp_path: Path) -> None:
    partial = PartialFile(tmp_path / "s.safetensors")
    partial.save(sums, ORIGIN)
    assert partial.path == tmp_path / "s.partial.safetensors"
    found = partial.load(ORIGIN, CPU)
    assert found is not None
    assert found.gradients == sums.gradients
    assert (found.images, found.values, found.energy) == (1, 64.0, 1 / 3)
    add_image(sums, 2)
    add_image(found, 2)
    assert_equal(found.state(), sums.state())


def test_a_state_is_the_sums_themselves(sums: Sums) -> None:
    before = copied(sums)
    again = Sums.from_state(sums.state())
    add_image(again, 2)
    moved = {key for key, tensor in sums.state().items() if not torch.equal(tensor, before[key])}
    assert moved == {key for key in before if key.endswith((".dense", ".diagonal", ".sketch"))}


@pytest.mark.parametrize(
    "changes",
    [
        {"tuned": "abd"},
        {"images": "deg"},
        {"seed": 4},
        {"schedule": ((1000.0, 1.0),)},
        {"size": 64},
        {"dtype": "bf16"},
        {"conv_dense_up_to": 9},
    ],
    ids=str,
)
def test_sums_of_another_origin_are_not_taken(sums: Sums, tmp_path: Path, changes: dict[str, object]) -> None:
    partial = PartialFile(tmp_path / "s.safetensors")
    partial.save(sums, ORIGIN)
    with pytest.raises(ConfigError, match="with other inputs or settings"):
        partial.load(replace(ORIGIN, **changes), CPU)
    assert PartialFile(tmp_path / "s.safetensors", overwrite=True).load(replace(ORIGIN, **changes), CPU) is None


def test_a_plan_of_the_file_does_not_keep_it_from_being_written_again(sums: Sums, tmp_path: Path) -> None:
    with notes_of_one_call():
        partial, _ = PartialFile(tmp_path / "s.safetensors"), PartialFile(tmp_path / "s.safetensors")
        for _ in range(3):
            partial.save(sums, ORIGIN)
        partial.remove()
    assert list(tmp_path.iterdir()) == []


def test_without_a_file_there_is_nothing_to_take_and_nothing_to_remove(sums: Sums, tmp_path: Path) -> None:
    partial = PartialFile(tmp_path / "s.safetensors")
    assert partial.load(ORIGIN, CPU) is None
    partial.remove()
    partial.save(sums, ORIGIN)
    partial.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_somebody_else_at_its_path_stays(sums: Sums, tmp_path: Path) -> None:
    partial = PartialFile(tmp_path / "s.safetensors")
    partial.path.write_text("somebody else's")
    partial.remove()
    with pytest.raises(OutputError, match=r"s\.partial\.safetensors is another run's by now, and was kept"):
        partial.save(sums, ORIGIN)
    assert partial.path.read_text() == "somebody else's"
    partial.path.unlink()
    partial.save(sums, ORIGIN)
    partial.remove()
    assert not partial.path.exists()


def test_a_file_in_the_place_of_the_sums_that_a_run_has_not_replaced_stays(tmp_path: Path) -> None:
    theirs = tmp_path / "s.partial.safetensors"
    save_file({"a": torch.ones(1)}, theirs)
    partial = PartialFile(tmp_path / "s.safetensors", overwrite=True)
    assert partial.load(ORIGIN, torch.device("cpu")) is None
    partial.remove()
    assert theirs.exists()
