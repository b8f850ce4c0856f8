"""The workflow `infer` over shards on a small random LBM, in one process."""

import dataclasses
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image

from lbm_lora import errors
from lbm_lora.cli.main import main
from lbm_lora.cli.present import present
from lbm_lora.configs.extract import ExtractConfig
from lbm_lora.configs.infer import InferConfig
from lbm_lora.configs.infer_shards import InferShardsConfig
from lbm_lora.configs.model_options import ModelOptions
from lbm_lora.errors import ConfigError, DataError, MissingExtraError, OutputError
from lbm_lora.inference.shards import predict
from lbm_lora.inference.shards.translate_shard import ShardTask
from lbm_lora.workflows import infer as infer_images
from lbm_lora.workflows.extract import run as extract
from lbm_lora.workflows.infer_shards import run
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
    extract(ExtractConfig(base_model_path=base, tuned_model_path=tuned, save_to=lora, rank=4, conv_rank=4))
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
def infer(files: Files, shards: str, tmp_path: Path) -> Callable[..., InferShardsConfig]:
    """`infer(seed=1)`: a small fp32 run over the shards on the CPU, into `tmp_path / "out"`."""
    defaults: dict[str, Any] = {
        "base_model_path": files.base,
        "lora_path": (files.lora,),
        "source_shards": (shards,),
        "output_path": str(tmp_path / "out"),
        "device": "cpu",
        "torch_dtype": "float",
        "size": 64,
    }
    return lambda **changes: InferShardsConfig(**defaults | changes)


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
    infer: Callable[..., InferShardsConfig], tmp_path: Path, changes: dict[str, Any]
) -> None:
    result = run(infer(**changes))
    assert (result.written, result.present, result.images) == (2, 0, 4)
    for name, data in members(tmp_path / "in/001.tar").items():
        key, role, _ = name.split(".")
        (tmp_path / role).mkdir(exist_ok=True)
        (tmp_path / role / f"{key}.png").write_bytes(data)
    shared = {field.name for field in dataclasses.fields(ModelOptions)}
    values = {name: value for name, value in vars(infer(**changes)).items() if name in shared}
    mask = f"{tmp_path}/mask" if "mask_key" in changes else None
    infer_images.run(
        InferConfig(source_image=f"{tmp_path}/source", output_path=f"{tmp_path}/single", mask=mask, **values)
    )
    made = members(tmp_path / "out/001.tar")
    assert made == {f"{key}.output.png": (tmp_path / f"single/{key}.png").read_bytes() for key in ("10", "11")}


def test_what_is_there_is_not_made_again(infer: Callable[..., InferShardsConfig], tmp_path: Path) -> None:
    run(infer())
    unbroken = contents(tmp_path / "out")
    assert sorted(unbroken) == ["000.tar", "000.tar.json", "001.tar", "001.tar.json", "infer.json"]
    (tmp_path / "out/000.tar").unlink()  # as if the run had been killed before
    stamp = (tmp_path / "out/001.tar").stat().st_mtime_ns
    result = run(infer())
    assert (result.written, result.present, result.images) == (1, 1, 2)
    assert (tmp_path / "out/001.tar").stat().st_mtime_ns == stamp
    assert contents(tmp_path / "out") == unbroken


def test_a_run_that_was_killed_before_its_results_got_their_name_leaves_nothing_that_counts_as_done(
    infer: Callable[..., InferShardsConfig], tmp_path: Path
) -> None:
    """The record is there, and so is somebody's shard, which `overwrite` was to replace."""
    run(infer())
    unbroken = contents(tmp_path / "out")
    output = tmp_path / "out/000.tar"
    output.unlink()
    output.write_bytes(b"theirs")
    with pytest.raises(OutputError, match=r"000\.tar is not the result that 000\.tar\.json records"):
        run(infer())
    assert output.read_bytes() == b"theirs"
    result = run(infer(overwrite=True))
    assert (result.written, result.present) == (1, 1)
    assert contents(tmp_path / "out") == unbroken


OTHER: dict[str, dict[str, Any]] = {
    "seed was 0 and is now 1": {"seed": 1},
    "lora_scale was [1.0] and is now [0.5]": {"lora_scale": (0.5,)},
    "lora_scale was [1.0] and is now ['1,attn1=0']": {"lora_scale": ("1,attn1=0",)},
    "crop was None and is now True": {"crop": True},
    "keep_detail was None and is now 0.5": {"keep_detail": 0.5},
    "match_color was None and is now 1.0": {"match_color": 1.0},
    "lora_path (by content) was": {"lora_path": ()},
    "num_inference_steps was 1 and is now 2": {"num_inference_steps": 2},
    "output_format was 'png' and is now 'jpg'": {"output_format": "jpg"},
    "torch_dtype was 'float' and is now 'bf16'": {"torch_dtype": "bf16"},
}


def test_other_settings_are_named_and_never_mixed(infer: Callable[..., InferShardsConfig], tmp_path: Path) -> None:
    run(infer())
    (tmp_path / "out/001.tar").unlink()
    before = contents(tmp_path / "out")
    for name, changes in OTHER.items():
        with pytest.raises(ConfigError, match=re.escape(name)):
            run(infer(**changes))
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
    infer: Callable[..., InferShardsConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: set[str] = set()

    def stopped(fabric: object, jobs: object, task: ShardTask, *_: Any, **named: Any) -> Any:
        recorded.update(key.removesuffix(" (by content)") for key in task.settings)
        raise OutputError("the work begins")

    monkeypatch.setattr(predict, "predict", stopped)
    with pytest.raises(OutputError, match="the work begins"):
        run(infer())
    assert {field.name for field in dataclasses.fields(ModelOptions)} <= recorded | CHANGE_NO_IMAGE
    options = {field.name for field in dataclasses.fields(InferShardsConfig)}
    assert options - recorded == CHANGE_NO_IMAGE
    assert recorded - options == {"VAE", "configuration"}


def test_another_base_is_other_settings(files: Files, infer: Callable[..., InferShardsConfig], tmp_path: Path) -> None:
    run(infer(lora_path=()))
    other = write_base(tmp_path / "other", TINY, dtype=torch.float32, seed=1)
    with pytest.raises(ConfigError, match=r"base_model_path \(by content\) was"):
        run(infer(lora_path=(), base_model_path=other))


def test_corrupt_samples_are_named_and_remembered(
    infer: Callable[..., InferShardsConfig], tmp_path: Path, png: Png, write_shard: Callable[..., Path]
) -> None:
    samples = {f"{i}": {"source.png": png(i)} for i in range(4)}
    write_shard("more/a.tar", samples | {"4": {"source.png": png(4)[:5000]}})
    config = infer(source_shards=(f"{tmp_path}/more/a.tar",), max_corrupt=0.2)
    result = run(config)
    assert result.images == 4
    assert [item.key for item in result.skipped] == ["a.tar/4"]
    text = present("infer_shards", result)
    assert "Translated 4 images of 1 shard into" in text
    assert "1 sample cannot be used.\n  left out: a.tar/4: cannot be decoded" in text
    again = run(config)
    assert (again.present, again.skipped) == (1, result.skipped)
    with pytest.raises(DataError, match=r"^a\.tar: 1 of 5 samples cannot be used \(20\.0 %\)"):
        run(infer(source_shards=config.source_shards, output_path=str(tmp_path / "strict"), max_corrupt=0.1))
    assert not list((tmp_path / "strict").glob("*.tar"))


def test_an_error_in_the_work_leaves_what_is_done(
    infer: Callable[..., InferShardsConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = predict.translate_shard

    def failing(*arguments: Any, **named: Any) -> Any:
        if (tmp_path / "out/000.tar").exists():
            raise OutputError("the disk is full")
        return work(*arguments, **named)

    monkeypatch.setattr(predict, "translate_shard", failing)
    with pytest.raises(OutputError, match="the disk is full"):
        run(infer())
    monkeypatch.undo()
    result = run(infer())
    assert (result.written, result.present) == (1, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": 0}, "^devices and num_nodes must be 1 or more"),
        ({"devices": 2, "device": "cuda:1"}, "^device cuda:1 is a single device, but devices is 2"),
        ({"max_corrupt": 2.0}, r"^max_corrupt must be between 0 and 1, got 2\.$"),
        ({"num_inference_steps": 0}, "^num_inference_steps must be 1 or more, got 0"),
        ({"base_model_path": None}, "^base_model_path is missing"),
    ],
)
def test_flags_that_cannot_be(
    infer: Callable[..., InferShardsConfig], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(infer(**changes))
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(infer: Callable[..., InferShardsConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == "lightning" else True)
    with pytest.raises(MissingExtraError, match=r"^translating shards needs lightning, .*pip install"):
        run(infer())


def test_the_command_line(files: Files, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "infer",
        "--base_model_path",
        str(files.base),
        "--source_shards",
        shards,
        "--device",
        "cpu",
        "--size",
        "64",
    ]
    words += ["--output_path", str(tmp_path / "out"), "--torch_dtype", "float"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out == f"Translated 4 images of 2 shards into {tmp_path}/out on cpu in fp32; 0 shards already existed.\n"
    assert main([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["present"], answer["skipped"], answer["images"]) == (2, [], 0)
    assert main([*words, "--seed", "3"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
