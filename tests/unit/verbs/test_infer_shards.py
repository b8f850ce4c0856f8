"""`infer --source_shards` on a small random LBM, in one process."""

import dataclasses
import io
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image

from lbm_lora.errors import ConfigError, DataError, OutputError
from lbm_lora.inference import shards as engine
from lbm_lora.inference.shards import ShardTask
from lbm_lora.verbs.extract import extract
from lbm_lora.verbs.infer import infer
from lbm_lora.verbs.infer_shards import InferShardsResult, infer_shards
from lbm_lora.verbs.verb import parameters
from standins import TINY, write_base, write_tuned

Png = Callable[..., bytes]


@dataclasses.dataclass
class Files:
    """A base and a LoRA of it."""

    base: Path
    lora: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("models")
    base = write_base(folder / "base", TINY, dtype=torch.float32)
    tuned = write_tuned(folder / "tuned", TINY, dtype=torch.float32)
    lora = folder / "lora.safetensors"
    extract(base=base, tuned=tuned, save_to=lora, rank=4, conv_rank=4)
    return Files(base=base, lora=lora)


@pytest.fixture
def shards(tmp_path: Path, png: Png, write_shard: Callable[..., Path]) -> str:
    """Two shards of two images each, with masks."""
    mask = io.BytesIO()
    Image.linear_gradient("L").resize((48, 64)).save(mask, "PNG")
    for number in range(2):
        samples = {
            f"{number}{i}": {"source.png": png(2 * number + i, (48, 64)), "mask.png": mask.getvalue()} for i in range(2)
        }
        write_shard(f"in/{number:03d}.tar", samples)
    return f"{tmp_path}/in/{{000..001}}.tar"


@pytest.fixture
def run(files: Files, shards: str, tmp_path: Path) -> Callable[..., InferShardsResult]:
    """`run(seed=1)`: a small fp32 run over the shards on the CPU, into `tmp_path / "out"`."""
    defaults: dict[str, Any] = {
        "base": files.base,
        "lora": files.lora,
        "source_shards": shards,
        "output_path": str(tmp_path / "out"),
        "device": "cpu",
        "torch_dtype": "float",
        "size": 64,
    }
    return lambda **changes: infer_shards(**defaults | changes)


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {info.name: cast(Any, tar.extractfile(info)).read() for info in tar}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_inference_steps": 2, "seed": 7, "mode": "live", "sample_posterior": True, "keep_detail": 0.5},
        {"mask_key": "mask.png", "match_color": 0.5},
    ],
    ids=["plain", "settings", "mask"],
)
def test_an_image_is_the_one_of_source_image(
    run: Callable[..., InferShardsResult], files: Files, tmp_path: Path, changes: dict[str, Any]
) -> None:
    result = run(**changes)
    assert (result.written, result.present, result.images) == (2, 0, 4)
    for name, data in members(tmp_path / "in/001.tar").items():
        key, role, _ = name.split(".")
        (tmp_path / role).mkdir(exist_ok=True)
        (tmp_path / role / f"{key}.png").write_bytes(data)
    shared = {name: value for name, value in changes.items() if name != "mask_key"}
    mask = f"{tmp_path}/mask" if "mask_key" in changes else None
    infer(
        files.base, f"{tmp_path}/source", tmp_path / "single", files.lora, mask=mask, size=64, device="cpu",
        torch_dtype="float", **shared,
    )  # fmt: skip
    made = members(tmp_path / "out/001.tar")
    assert made == {f"{key}.output.png": (tmp_path / f"single/{key}.png").read_bytes() for key in ("10", "11")}


def test_what_is_there_is_not_made_again(run: Callable[..., InferShardsResult], tmp_path: Path) -> None:
    run()
    unbroken = contents(tmp_path / "out")
    assert sorted(unbroken) == ["000.tar", "000.tar.json", "001.tar", "001.tar.json", "infer.json"]
    (tmp_path / "out/000.tar").unlink()  # as if the run had been killed before
    stamp = (tmp_path / "out/001.tar").stat().st_mtime_ns
    result = run()
    assert (result.written, result.present, result.images) == (1, 1, 2)
    assert (tmp_path / "out/001.tar").stat().st_mtime_ns == stamp
    assert contents(tmp_path / "out") == unbroken


def test_a_run_that_was_killed_before_its_results_got_their_name_leaves_nothing_that_counts_as_done(
    run: Callable[..., InferShardsResult], tmp_path: Path
) -> None:
    """The record is there, and so is somebody's shard, which `overwrite` was to replace."""
    run()
    unbroken = contents(tmp_path / "out")
    output = tmp_path / "out/000.tar"
    output.unlink()
    output.write_bytes(b"theirs")
    with pytest.raises(OutputError, match=r"000\.tar exists, and lbm-lora did not write it"):
        run()
    assert output.read_bytes() == b"theirs"
    result = run(overwrite=True)
    assert (result.written, result.present) == (1, 1)
    assert contents(tmp_path / "out") == unbroken


OTHER: dict[str, dict[str, Any]] = {
    "seed was 0 and is now 1": {"seed": 1},
    "lora_scale was [1.0] and is now [0.5]": {"lora_scale": (0.5,)},
    "lora_scale was [1.0] and is now ['1,attn1=0']": {"lora_scale": ("1,attn1=0",)},
    "crop was None and is now True": {"crop": True},
    "keep_detail was None and is now 0.5": {"keep_detail": 0.5},
    "match_color was None and is now 1.0": {"match_color": 1.0},
    "lora_path (by content) was": {"lora": ()},
    "num_inference_steps was 1 and is now 2": {"num_inference_steps": 2},
    "output_format was 'png' and is now 'jpg'": {"output_format": "jpg"},
    "torch_dtype was 'float' and is now 'bf16'": {"torch_dtype": "bf16"},
}


def test_other_settings_are_named_and_never_mixed(run: Callable[..., InferShardsResult], tmp_path: Path) -> None:
    run()
    (tmp_path / "out/001.tar").unlink()
    before = contents(tmp_path / "out")
    for name, changes in OTHER.items():
        with pytest.raises(ConfigError, match=re.escape(name)):
            run(**changes)
    assert contents(tmp_path / "out") == before


CHANGE_NO_IMAGE = {
    "config_path",  # what it says is recorded: "configuration (by content)"
    "backbone_signature",  # the base that is made of it is recorded by content
    "allow_other_base",
    "allow_unmatched",
    "source_shards",  # each shard has its own record
    "output_path",
    "max_corrupt",
    "overwrite",
    "cache_dir",
    "devices",
    "num_nodes",
    "strategy",
}
"""Options that may differ between runs into one folder."""


def test_every_option_that_changes_images_is_recorded(
    run: Callable[..., InferShardsResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: set[str] = set()

    def stopped(fabric: object, jobs: object, task: ShardTask, *_: Any, **named: Any) -> Any:
        recorded.update(key.removesuffix(" (by content)") for key in task.settings)
        raise OutputError("the work begins")

    monkeypatch.setattr(engine, "predict", stopped)
    with pytest.raises(OutputError, match="the work begins"):
        run()
    options = {one.flag for one in parameters(infer_shards).values()}
    assert options - recorded == CHANGE_NO_IMAGE
    assert recorded - options == {"VAE", "configuration"}


def test_corrupt_samples_are_named_and_remembered(
    run: Callable[..., InferShardsResult], tmp_path: Path, png: Png, write_shard: Callable[..., Path]
) -> None:
    samples = {f"{i}": {"source.png": png(i)} for i in range(4)}
    write_shard("more/a.tar", samples | {"4": {"source.png": png(4)[:5000]}})
    config: dict[str, Any] = {"source_shards": f"{tmp_path}/more/a.tar", "max_corrupt": 0.2}
    result = run(**config)
    assert result.images == 4
    assert [item.key for item in result.skipped] == ["a.tar/4"]
    text = infer_shards.verb.text(result, False)  # pyright: ignore
    assert "Translated 4 images of 1 shard into" in text
    assert "1 sample cannot be used.\n  left out: a.tar/4: cannot be decoded" in text
    again = run(**config)
    assert (again.present, again.skipped) == (1, result.skipped)
    with pytest.raises(DataError, match=r"^a\.tar: 1 of 5 samples cannot be used \(20\.0 %\)"):
        run(source_shards=config["source_shards"], output_path=str(tmp_path / "strict"), max_corrupt=0.1)
    assert not list(tmp_path.glob("strict/*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": 2, "device": "cuda:1"}, "^device cuda:1 is a single device, but devices is 2"),
        ({"max_corrupt": 2.0}, "^max_corrupt must be less than or equal to 1, got 2"),
    ],
)
def test_flags_that_cannot_be(
    run: Callable[..., InferShardsResult], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(**changes)
    assert not (tmp_path / "out").exists()
