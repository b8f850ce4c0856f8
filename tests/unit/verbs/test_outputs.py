"""Outputs of every command: no input and no file of somebody else is replaced, by whatever road it is reached.

A refused command has opened nothing yet, so most inputs here are files of one line.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from lbm_lora.adapter import Adapter, LoraModule
from lbm_lora.cli.main import main
from lbm_lora.files import BASE, MARK, MARK_KEY
from lbm_lora.imaging.image_file import write_image
from lbm_lora.naming import ModuleName
from standins import Lbm

EXTRACT = "extract --base_model_path base.safetensors --tuned_model_path tuned.safetensors"
CALIBRATE = "calibrate --tuned_model_path tuned.safetensors --images photos"
REFINE = "refine --base_model_path base.safetensors --tuned_model_path tuned.safetensors --lora_path lora.safetensors"
FUSE = "fuse --base_model_path base.safetensors --lora_path lora.safetensors"
VALIDATE = (
    "validate --base_model_path base.safetensors --tuned_model_path tuned.safetensors --lora_path lora.safetensors"
)
INFER = "infer --base_model_path base.safetensors --source_image photos/a.png"
SHARDS = "infer --base_model_path base.safetensors --source_shards shards/a.tar --output_path out"
MADE = "infer --source_image photos/a.png --output_path o.png --backbone_signature backbone.safetensors"
MAKE = "base --backbone_signature backbone.safetensors"
TRAIN = "train --path_config train.yaml"

OTHERS = [
    (f"{MAKE} --save_path b.safetensors", "b_ledger.json"),
    (f"{EXTRACT} --save_to out/l.safetensors --ranks 4 8", "out/l_r8.safetensors"),
    (f"{EXTRACT} --save_to out/l.safetensors --also peft", "out/l.peft/adapter_config.json"),
    (f"{EXTRACT} --save_to l.safetensors --calibration_images photos", "l_calibration.safetensors"),
    (
        "extract --base_model_path new.safetensors --create_base_model --backbone_signature backbone.safetensors "
        "--tuned_model_path tuned.safetensors --save_to l.safetensors",
        "new_ledger.json",
    ),
    (f"{CALIBRATE} --save_to s.safetensors", "s.partial.safetensors"),
    (f"{REFINE} --images photos --save_to r.safetensors", "r.refine.pt"),
    (f"{FUSE} --save_to f.safetensors", "f.safetensors"),
    (f"{VALIDATE} --report rep --images photos", "rep/comparison.png"),
    (f"{VALIDATE} --layer_names names.txt", "names.txt"),
    (f"{INFER} --output_path o.png --compare", "o_compare.png"),
    (SHARDS, "out/a.tar.json"),
    ("convert --lora_path lora.safetensors --to peft --save_to c", "c/adapter_config.json"),
    ("merge --lora_path lora.safetensors tuned.safetensors --save_to m.safetensors", "m.safetensors"),
    ("resize --lora_path lora.safetensors --ranks 4 8 --save_to s.safetensors", "s_r4.safetensors"),
    ("inspect lora.safetensors --report rep", "rep/inspect.html"),
    ("push real.safetensors --to user/repo --base_model user/lbm --save_to repo", "repo/README.md"),
    (
        "push real.safetensors --to user/repo --base_model user/lbm --images photos --save_to repo",
        "repo/images/a.png",
    ),
    (TRAIN, "run/last.safetensors"),
    (f"{TRAIN} --also kohya", "run/last.kohya.safetensors"),
    ("compress LBM --output made --size 300KB --name x", "made/x_lora_config.yaml"),
    ("compress LBM --output made --size 300KB", "made/report/report.html"),
    ("demo --output made", "made/relit.png"),
]
"""A command, and what somebody keeps where it writes."""

INPUTS = [
    (f"{MAKE} --save_path backbone.safetensors", "backbone.safetensors"),
    (
        "base --backbone_signature backbone --save_path backbone/unet/weights.safetensors",
        "backbone/unet/weights.safetensors",
    ),
    (f"{MAKE} --config_path b_ledger.json --save_path b.ckpt", "b_ledger.json"),
    (f"{EXTRACT} --save_to base.safetensors", "base.safetensors"),
    (
        "extract --base_model_path model --tuned_model_path tuned.safetensors --save_to model/w.safetensors",
        "model/w.safetensors",
    ),
    (
        "extract --base_model_path model/w.safetensors.index.json --tuned_model_path tuned.safetensors "
        "--save_to model/w.safetensors",
        "model/w.safetensors",
    ),
    (f"{EXTRACT} --calibration_images photos --save_to tuned.safetensors", "tuned.safetensors"),
    (f"{FUSE} --save_to lora.safetensors", "lora.safetensors"),
    (
        "refine --base_model_path model --tuned_model_path tuned.safetensors --lora_path lora.safetensors "
        "--images photos --save_to model/w.safetensors",
        "model/w.safetensors",
    ),
    (f"{VALIDATE} --layer_names lora.safetensors", "lora.safetensors"),
    (f"{VALIDATE} --config_path conf.yaml --layer_names conf.yaml", "conf.yaml"),
    (f"{VALIDATE} --report rep --images rep/comparison.png", "rep/comparison.png"),
    (f"{INFER} --mask o.png --output_path o.png", "o.png"),
    (f"{INFER} --compare --output_path o.png --mask o_compare.png", "o_compare.png"),
    ("infer --base_model_path base.safetensors --source_shards shards/a.tar --output_path shards", "shards/a.tar"),
    ("convert --lora_path lora.safetensors --to kohya --save_to lora.safetensors", "lora.safetensors"),
    ("convert --lora_path peft --to peft --save_to peft", "peft/adapter_model.safetensors"),
    ("merge --lora_path lora.safetensors tuned.safetensors --save_to lora.safetensors", "lora.safetensors"),
    ("resize --lora_path lora.safetensors --rank 4 --save_to lora.safetensors", "lora.safetensors"),
    ("inspect rep/inspect.html --report rep", "rep/inspect.html"),
    ("push repo/real.safetensors --to user/repo --base_model user/lbm --save_to repo", "repo/real.safetensors"),
    (f"{TRAIN} --base_model_path run/last.safetensors", "run/last.safetensors"),
]
"""A command, and the input that it would write over."""


MADE_BASE = f'{{"__metadata__":{{"{MARK_KEY}":"{BASE}"}}}}'


@pytest.fixture
def folder(lbm: Lbm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Inputs of all the commands, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in (
        *("base.safetensors", "tuned.safetensors", "lora.safetensors", "backbone.safetensors", "model/w.safetensors"),
        *("backbone/unet/w.safetensors", "peft/adapter_config.json", "peft/adapter_model.safetensors"),
    ):
        theirs(Path(name))
    Path("model/w.safetensors.index.json").write_text('{"weight_map": {"a": "w.safetensors"}}')
    for name in ("photos/a.png", "photos/b.png", "pairs/a.source.png", "pairs/a.target.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64)).save(name)
    Path("shards").mkdir()
    Path("shards/a.tar").write_bytes(bytes(10240))
    settings = {
        "base_model_path": str(lbm.base),
        "train_folder": "pairs",
        "save_ckpt_path": "run",
        "max_steps": 1,
        "lora_rank": 2,
    }
    Path("train.yaml").write_text(yaml.safe_dump(settings))
    layer = ModuleName("conv_in")
    Adapter({layer: LoraModule(layer, torch.ones(2, 4, 3, 3), torch.ones(16, 2, 1, 1), 1.0)}, {}).save(
        "real.safetensors"
    )
    return tmp_path


def theirs(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"somebody's")


def contents() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def refused(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a refused command, which changes nothing."""
    before = contents()
    assert main(line.split()) == 2
    assert contents() == before
    err = capsys.readouterr().err
    assert err.count("error: ") == 1, err
    return err[err.index("error: ") :]


@pytest.mark.parametrize(("line", "victim"), OTHERS)
def test_a_file_of_somebody_else_is_not_replaced(
    folder: Path, lbm: Lbm, line: str, victim: str, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs(folder / victim)
    message = refused(line.replace("LBM", f"{lbm.tuned.parent} --backbone_signature {lbm.backbone}"), capsys)
    assert f"{victim} exists, and lbm-lora did not write it. Choose another path, or use --overwrite" in message


@pytest.mark.parametrize(("line", "victim"), INPUTS)
def test_an_input_is_not_replaced(folder: Path, line: str, victim: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / victim
    if path.name == "real.safetensors":
        path.parent.mkdir(exist_ok=True)
        Path("real.safetensors").rename(path)
    elif path.name == "config.yaml" and path.parent.name == "run":
        path.parent.mkdir()
        Path("train.yaml").rename(path)
    elif path.name == "b_ledger.json":
        path.write_text("{}")
    elif path.suffix == ".png" and not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_image(Image.new("RGB", (64, 64)), path, mark=f"{MARK}: result")  # one of ours, even
    elif not path.exists():
        theirs(path)
    for overwrite in ("", " --overwrite"):
        message = refused(line + overwrite, capsys)
        assert "an input of this command" in message
        assert victim in message


@pytest.mark.parametrize(
    ("line", "victim"),
    [
        (f"{MADE} --base_model_path tuned.ckpt", "tuned.safetensors"),
        (f"{MADE} --base_model_path lora.ckpt --lora_path lora.safetensors", "lora.safetensors"),
        (
            "extract --base_model_path tuned.ckpt --create_base_model --backbone_signature backbone.safetensors "
            "--tuned_model_path tuned.safetensors --save_to l.safetensors",
            "tuned.safetensors",
        ),
        ("train --path_config train.yaml --base_model_path tuned.ckpt --backbone_signature LBM", "tuned.safetensors"),
    ],
)
def test_a_base_that_is_missing_is_not_made_over_another_model(
    folder: Path, lbm: Lbm, line: str, victim: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for content in ("somebody's", MADE_BASE):  # a base of another backbone or precision, too
        Path(victim).write_text(content)
        message = refused(line.replace("LBM", str(lbm.backbone)) + " --overwrite", capsys)
        assert f"If you mean {victim}, give that path" in message


def by_symlink(source: Path, link: Path) -> None:
    link.symlink_to(source)


@pytest.mark.parametrize("road", [os.link, by_symlink])
def test_a_link_to_an_input_is_that_input(
    folder: Path, road: Callable[[Path, Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    road(folder / "base.safetensors", folder / "l_config.yaml")
    assert "an input of this command" in refused(f"{EXTRACT} --save_to l.safetensors --overwrite", capsys)


PLACES = [
    (f"{VALIDATE} --report lora.safetensors", "report.txt would be in lora.safetensors, which is a file."),
    (f"{EXTRACT} --save_to base.safetensors/l.safetensors", "would be in base.safetensors, which is a file."),
    ("compress LBM --output LBM_FOLDER", "--output LBM_FOLDER is the folder of the checkpoint."),
    ("compress LBM --output out", "the report out/report/report.txt would be in out/report, which is a file."),
]


@pytest.mark.parametrize(("line", "message"), PLACES)
def test_an_output_that_cannot_be_in_its_place_is_refused_at_once(
    folder: Path, lbm: Lbm, line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs(folder / "out" / "report")
    shutil.copytree(lbm.tuned.parent, folder / "model", dirs_exist_ok=True)
    (folder / "model" / "w.safetensors.index.json").unlink()
    (folder / "model" / "w.safetensors").unlink()
    line = line.replace("LBM_FOLDER", "model").replace("LBM", f"model --backbone_signature {lbm.backbone}")
    assert message.replace("LBM_FOLDER", "model") in refused(line, capsys)
