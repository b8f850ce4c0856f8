"""The files of one pass: all of them complete or none there, a header within its room, and the sidecar."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lbm_lora.adapter import METADATA_ROOM, Ledger, Status, load_adapter
from lbm_lora.checkpoint import entry_bytes, open_checkpoint
from lbm_lora.errors import CheckpointError
from lbm_lora.extraction import AdapterOutput, DeltaSettings, DirectPass, Plan, plan_extraction
from lbm_lora.extraction.adapter_output import header_bytes, store_adapters
from lbm_lora.factorize import FixedRank
from lbm_lora.naming import ModuleName
from lbm_lora.progress import SILENT
from smallnet import small_state

Save = Callable[[str, Mapping[str, Tensor]], Path]
SETTINGS = {"rank": 2, "words": 'quotes " and ü'}


@pytest.fixture
def plan_of(save: Save) -> Callable[[int], Plan]:
    """`plan_of(2)`: from the small network of seed 1 to that of seed 2."""

    def plan(seed: int) -> Plan:
        base, tuned = save("base.safetensors", small_state(1)), save("tuned.safetensors", small_state(seed))
        return plan_extraction(open_checkpoint(base).component(), open_checkpoint(tuned).component())

    return plan


def output_of(plan: Plan, path: Path | None, rank: int = 2) -> AdapterOutput:
    return AdapterOutput(
        path=path,
        shapes=plan.shapes(),
        ranks=plan.ranks(),
        dense=plan.dense(),
        rank=rank,
        conv_rank=rank,
        settings=SETTINGS,
        errors={"measured_worst_psnr": 41.5},
    )


def written(plan: Plan, folder: Path, ranks: tuple[int, ...]) -> list[Ledger]:
    """The adapters `rRANK.safetensors` of one pass."""
    plans = [plan.with_ranks(FixedRank(linear=rank, conv=rank)) for rank in ranks]
    outputs = [output_of(one, folder / f"r{rank}.safetensors", rank) for one, rank in zip(plans, ranks, strict=True)]
    settings = DeltaSettings(dtype=torch.float32)
    stored = store_adapters(outputs, DirectPass(plans, settings), plan, torch.float32, SILENT)
    assert all(adapter is None for _, adapter in stored)
    return [ledger for ledger, _ in stored]


def test_one_pass_writes_every_file_with_its_own_ranks_and_errors(
    plan_of: Callable[[int], Plan], tmp_path: Path
) -> None:
    small, large = written(plan_of(2), tmp_path, (1, 4))
    assert large.total().error_sq < small.total().error_sq
    for rank, ledger in ((1, small), (4, large)):
        adapter = load_adapter(tmp_path / f"r{rank}.safetensors")
        assert adapter.modules[ModuleName("head.0")].rank == rank
        assert {row.name for row in ledger.of(Status.DENSE)} == set(adapter.dense)
        facts = adapter.metadata.facts
        assert json.loads(facts["lbm_lora_errors"]) == {
            "relative_error": pytest.approx(ledger.total().relative_error, rel=1e-5),
            "noise_floor": pytest.approx(ledger.total().noise_floor, rel=1e-5),
            "measured_worst_psnr": 41.5,
        }
        assert json.loads(facts["lbm_lora_settings"]) == SETTINGS
        assert json.loads(facts["lbm_lora_counts"]) == ledger.counts()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_an_output_without_a_path_is_kept_in_memory_and_is_what_the_file_holds(
    plan_of: Callable[[int], Plan], tmp_path: Path, dtype: torch.dtype
) -> None:
    plan = plan_of(2).with_ranks(FixedRank(linear=2, conv=2))
    outputs = [output_of(plan, None), output_of(plan, tmp_path / "l.safetensors")]
    (ledger, kept), (other, _) = store_adapters(
        outputs, DirectPass([plan, plan], DeltaSettings(dtype=dtype)), plan, dtype, SILENT
    )
    assert kept is not None
    assert ledger == other
    kept.save(tmp_path / "saved.safetensors")
    with open_checkpoint(tmp_path / "l.safetensors") as one, open_checkpoint(tmp_path / "saved.safetensors") as other:
        assert one.metadata == other.metadata
        assert one.specs == other.specs
        assert all(torch.equal(one.read(key), other.read(key)) for key in one.specs)


def test_where_nothing_can_be_stored_no_file_is_left(plan_of: Callable[[int], Plan], tmp_path: Path) -> None:
    plan = plan_of(1)
    before = set(tmp_path.iterdir())
    text = r"^\S+tuned\.safetensors has no change from \S+base\.safetensors .*: 0 lora, 0 dense, 13 unchanged, 0 excl"
    with pytest.raises(CheckpointError, match=text):
        written(plan, tmp_path, (1, 4))
    assert set(tmp_path.iterdir()) == before


def test_a_header_is_no_longer_than_was_planned_for(plan_of: Callable[[int], Plan], tmp_path: Path) -> None:
    plan = plan_of(2)
    written(plan, tmp_path, (2,))
    with open_checkpoint(tmp_path / "r2.safetensors") as file:
        entries = sum(entry_bytes(key, spec) for key, spec in file.specs.items())
        data = sum(spec.nbytes for spec in file.specs.values())
    size = (tmp_path / "r2.safetensors").stat().st_size
    planned = header_bytes(SETTINGS, plan, torch.bfloat16)
    assert size <= planned + entries + data
    short_digests = load_adapter(tmp_path / "r2.safetensors").metadata.base_tensors
    assert planned >= METADATA_ROOM + len(short_digests) + len(json.dumps(SETTINGS))
    assert header_bytes(SETTINGS | {"more": "x" * 1000}, plan, torch.bfloat16) >= planned + 1000
