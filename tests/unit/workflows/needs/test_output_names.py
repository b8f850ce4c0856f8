"""The outputs that `doctor` names, compared with the files that the commands write."""

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from lbm_lora import bundled
from lbm_lora.cli.main import main, parse
from lbm_lora.configs.extract import ExtractConfig
from lbm_lora.configs.infer_shards import InferShardsConfig
from lbm_lora.configs.train import TrainRunConfig
from lbm_lora.configs.validate import ValidateConfig
from lbm_lora.errors import OutputError
from lbm_lora.file_plan import FilePlan
from lbm_lora.training.settings.train_config import read_train_config
from lbm_lora.workflows.extract import run as extract
from lbm_lora.workflows.needs.inputs import Inputs, inputs_of
from lbm_lora.workflows.needs.outputs import Output, outputs_of
from standins import Lbm

EXTRACT = "extract --base_model_path base/model.safetensors --tuned_model_path tuned/model.safetensors"
MADE = "extract --base_model_path new.ckpt --tuned_model_path tuned/model.safetensors --create_base_model"
REFINE = EXTRACT.replace("extract", "refine") + " --lora_path l.safetensors --images photos"
VALIDATE = EXTRACT.replace("extract", "validate") + " --lora_path l.safetensors"
INFER = "infer --base_model_path base/model.safetensors --source_image photos"

LINES = [
    f"{EXTRACT} --save_to x.safetensors",
    f"{EXTRACT} --save_to x.safetensors --rank 2 --also kohya peft kohya",
    f"{EXTRACT} --save_to x.safetensors --ranks 16",
    f"{EXTRACT} --save_to x.safetensors --max_size '200 MB'",
    f"{EXTRACT} --save_to x.safetensors --max_size '300 KB' 400KB",
    f"{EXTRACT} --save_to x.safetensors --calibration_images photos --max_output_error 0.1",
    f"{MADE} --backbone_signature backbone --save_to x.safetensors",
    "base --backbone_signature backbone --save_path b.ckpt",
    "calibrate --tuned_model_path tuned/model.safetensors --images photos --save_to s.safetensors",
    "convert --lora_path l.safetensors --to peft --save_to c",
    "convert --lora_path l.safetensors --to kohya --save_to c.safetensors",
    "fuse --base_model_path base/model.safetensors --lora_path l.safetensors --save_to f.ckpt",
    "merge --lora_path l.safetensors l.safetensors --save_to m.safetensors",
    "resize --lora_path l.safetensors --save_to r.safetensors",
    "resize --lora_path l.safetensors --ranks 8 --save_to r.safetensors",
    "resize --lora_path l.safetensors --max_size '200 KB' 300KB --save_to r.safetensors",
    f"{REFINE} --save_to r.safetensors --also kohya",
    f"{REFINE} --save_to r.safetensors --method joint",
    f"{VALIDATE}",
    f"{VALIDATE} --report rep --layer_names names.txt --images photos",
    f"{INFER} --output_path out",
    f"{INFER} --output_path out --compare --save_input",
    "infer --backbone_signature backbone --base_model_path n.ckpt --source_image photos/a.jpg --output_path o.png",
    "inspect l.safetensors --report rep",
    "push l.safetensors --to user/repo --base_model user/lbm --save_to repo",
    "compress tuned/model.safetensors --backbone_signature backbone --images photos --also comfyui",
    "compress relight/model.safetensors --images photos --size 300KB --name x",
    "compress relight/model.safetensors --images photos --calibration s.safetensors --output out --size '200 MB'",
    "train --path_config train.yaml --base_model_path base/model.safetensors",
    "train --path_config train.yaml --base_model_path n.safetensors --backbone_signature backbone",
]
QUICK = [
    f"{EXTRACT} --save_to x.safetensors --ranks 2 4 --also kohya peft",
    "base --backbone_signature backbone --config_path tuned/config.yaml --save_path b.ckpt",
]
SLOW = [
    f"{EXTRACT} --save_to x.safetensors --max_size '300 KB'",
    f"{EXTRACT} --save_to x.safetensors --calibration_images photos --max_size '300 KB'",
    "resize --lora_path l.safetensors --ranks 2 --save_to r.safetensors",
    f"{REFINE} --save_to r.safetensors --steps 1 --size 64 --method joint --also kohya",
    f"{VALIDATE} --images photos/a.jpg",
    f"{INFER} --lora_path l.safetensors --output_path out --compare --save_input --size 64",
    "compress relight/model.safetensors --images photos --size '300 KB' --also comfyui",
    "data pack pairs --to shards",
]


@pytest.fixture(scope="module")
def lora(lbm: Lbm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "l.safetensors"
    extract(ExtractConfig(base_model_path=lbm.base, tuned_model_path=lbm.tuned, save_to=path, rank=4))
    return path


@pytest.fixture
def folder(lbm: Lbm, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Inputs of all the commands, in the current folder; a base is next to the tuned checkpoint in `relight`."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(lbm.backbone, "backbone")
    for name, file in (("base", lbm.base), ("tuned", lbm.tuned), ("relight", lbm.tuned)):
        shutil.copytree(file.parent, name)
    shutil.copy(lbm.base, "relight/exact_base.safetensors")
    shutil.copy(lora, "l.safetensors")
    Path("photos").mkdir()
    for name, photo in zip("ab", sorted(bundled.PHOTOS.glob("*.jpg")), strict=False):
        shutil.copy(photo, f"photos/{name}.jpg")
    shutil.copytree(bundled.PAIRS, "pairs")
    Path("train.yaml").write_text("train_folder: pairs\nsave_ckpt_path: run\nmax_steps: 1\nlora_rank: 2\n")
    return tmp_path


def named(words: Sequence[str]) -> list[Output]:
    """The outputs of a command, as `doctor` lists them."""
    config = parse("doctor", ["--", *words])[0].parsed
    name = type(config).__module__.rpartition(".")[2]
    if isinstance(config, TrainRunConfig):
        config = read_train_config(config.path_config, config.overrides)
    return outputs_of(name, config, inputs_of(config))


def files() -> set[Path]:
    return {path for path in Path().rglob("*") if path.is_file()}


def settled(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> FilePlan:
    """Start a command, and stop it when it has settled what it reads and writes."""
    plans: list[FilePlan] = []

    def stop(plan: FilePlan, **_: object) -> NoReturn:
        plans.append(plan)
        raise OutputError("stopped")

    monkeypatch.setattr(FilePlan, "check", stop)
    assert main(words) == 2
    return plans[0]


def check(outputs: Sequence[Output], written: set[Path]) -> None:
    """Compare named outputs with the files that are written."""
    expected = {one.path for one in outputs if not one.is_folder}
    # a folder with named LoRAs holds nothing else; the contents of others are not named
    told = {path.parent for path in expected if path.name.endswith("_lora.safetensors")}
    folders = {one.path for one in outputs if one.is_folder}
    assert expected - written == set()
    assert {path for path in written - expected if not (folders - told) & set(path.parents)} == set()
    assert all(any(path in one.parents for one in written) for path in folders)
    assert len({one.path for one in outputs}) == len(outputs)


@pytest.mark.parametrize("line", LINES)
def test_the_names_are_those_of_the_command(folder: Path, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = named(shlex.split(line))
    plan = settled(shlex.split(line), monkeypatch)
    check(outputs, {*(one.path for one in plan.outputs), *plan.extras})


def run_and_check(line: str) -> None:
    outputs, before = named(shlex.split(line)), files()
    assert main(shlex.split(line)) == 0
    check([one for one in outputs if not one.is_temporary], files() - before)


@pytest.mark.filterwarnings("ignore::lbm_lora.progress.LbmLoraWarning")
@pytest.mark.parametrize("line", QUICK)
def test_the_files_that_are_named_appear_and_no_others(folder: Path, line: str) -> None:
    run_and_check(line)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::lbm_lora.progress.LbmLoraWarning")
@pytest.mark.parametrize("line", SLOW)
def test_the_files_that_are_named_appear_in_longer_runs(folder: Path, line: str) -> None:
    run_and_check(line)


def test_a_report_on_a_lora_of_the_hub_is_in_the_current_folder(lbm: Lbm) -> None:
    config = ValidateConfig(base_model_path=lbm.base, tuned_model_path=lbm.tuned, lora_path=Path("user/repo"))
    assert [one.path for one in outputs_of("validate", config, Inputs())] == [
        Path("repo_report"),
        Path("repo_report/lora_layer_names.txt"),
    ]


def test_results_of_shards_may_be_in_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = InferShardsConfig(
        source_shards=("a.tar",), output_path="~/out", base_model_path=Path("n.ckpt"), backbone_signature="backbone"
    )
    assert [one.path for one in outputs_of("infer_shards", config, Inputs())] == [
        *(Path("n.safetensors"), Path("n.ckpt"), Path("n_ledger.json")),
        tmp_path / "out",
    ]
