"""The files of one pass: all of them complete or none there, a header within its room, and the sidecar."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from lbm_lora.adapter import METADATA_ROOM, Ledger, LedgerRow, Status, load_adapter
from lbm_lora.checkpoint import entry_bytes, open_checkpoint
from lbm_lora.errors import CheckpointError
from lbm_lora.extraction import AdapterOutput, DeltaSettings, DirectPass, Plan, plan_extraction, store_adapters
from lbm_lora.extraction.adapter_output import header_bytes, is_sidecar, write_sidecar
from lbm_lora.factorize import FixedRank, Measure
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.ownership import MARK_LINE
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
    assert [one.adapter for one in stored] == [None] * len(ranks)
    return [one.ledger for one in stored]


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_an_output_without_a_path_is_kept_in_memory_and_is_what_the_file_holds(
    plan_of: Callable[[int], Plan], tmp_path: Path, dtype: torch.dtype
) -> None:
    plan = plan_of(2).with_ranks(FixedRank(linear=2, conv=2))
    outputs = [output_of(plan, None), output_of(plan, tmp_path / "l.safetensors")]
    kept, written = store_adapters(outputs, DirectPass([plan, plan], DeltaSettings(dtype=dtype)), plan, dtype, SILENT)
    assert kept.adapter is not None
    assert kept.ledger == written.ledger
    kept.adapter.save(tmp_path / "saved.safetensors")
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


def row(name: str, status: Status, *shape: int) -> LedgerRow:
    return LedgerRow(ParamName(name), status, "", shape, None, Measure(numel=math.prod(shape)))


def test_the_sidecar_counts_tensors_and_layers(plan_of: Callable[[int], Plan], tmp_path: Path) -> None:
    ledger = Ledger(
        (
            row("a.weight", Status.LORA, 4, 6),
            row("a.bias", Status.DENSE, 4),
            row("b.weight", Status.EXCLUDED, 4, 4, 3, 3),
            row("norm.weight", Status.DENSE, 4),
            row("norm.bias", Status.UNCHANGED, 4),
            row("table", Status.DENSE, 4, 4),  # no weight of a layer
        )
    )
    output, adapter = output_of(plan_of(2), None), tmp_path / "my.lora.safetensors"
    path = write_sidecar(adapter, output, ledger, base="b.ckpt", min_diff=1e-6)
    assert path == tmp_path / "my.lora_config.yaml"
    assert is_sidecar(path)
    (tmp_path / "run.yaml").write_text(f"{MARK_LINE}mode: lora\n")
    assert not is_sidecar(tmp_path / "run.yaml")
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == {
        "architecture": "LBM",
        "base_model": "b.ckpt",
        "change_threshold": 1e-6,
        "conv_rank": 2,
        "coverage_percentage": "83.3%",
        "extraction_method": "lbm_lora",
        "native_naming": True,
        "rank": 2,
        "total_analyzed_layers": 2,
        "total_lora_modules": 1,
        "total_dense_deltas": 3,
        "total_stored_tensors": 4,
    }
