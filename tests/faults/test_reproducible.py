"""The same command gives the same bytes: again, in another folder, with another hash seed, with more threads."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults.goods import image, png
from faults.harness import Worker, contents
from webdataset.writer import TarWriter

from lbm_lora import bundled

pytestmark = [pytest.mark.faults, pytest.mark.slow]

SECONDS = 600
WITHOUT_A_NETWORK = ("base", "plain", "resized", "facts")
"""Beginnings of the names of outputs for which no network is run."""


@dataclass(frozen=True)
class Place:
    """A folder of inputs, and one of outputs."""

    inputs: Path
    outputs: Path

    def commands(self) -> list[list[object]]:
        """Commands on the mini model. Most read what an earlier one wrote."""
        out, images = self.outputs, self.inputs / "images"
        tuned, base = self.inputs / "tuned/model.safetensors", out / "base.safetensors"
        plain, calibrated, statistics = (out / f"{name}.safetensors" for name in ("plain", "calibrated", "statistics"))
        pair = ["--base_model_path", base, "--tuned_model_path", tuned]
        with_lora = ["--base_model_path", base, "--lora_path", calibrated]
        network = ["--size", "128", "--device", "cpu"]
        return [
            ["base", "--config_path", self.inputs / "tuned/config.yaml", "--backbone_signature", bundled.BACKBONE,
             "--save_path", base],
            ["extract", *pair, "--save_to", plain, "--rank", "4"],
            ["calibrate", "--tuned_model_path", tuned, "--images", images, "--probes", "1", "--timesteps", "250",
             "--save_to", statistics, *network],
            ["extract", *pair, "--save_to", calibrated, "--max_size", "2MB", "--calibration", statistics],
            ["infer", *with_lora, "--source_image", images, "--output_path", out / "images", "--compare", *network],
            ["infer", *with_lora, "--source_shards", self.inputs / "000000.tar", "--output_path", out / "shards",
             *network],
            ["fuse", *with_lora, "--save_to", out / "fused.safetensors"],
            ["fuse", *with_lora, "--save_to", out / "fused.ckpt"],
            ["convert", "--lora_path", calibrated, "--to", "comfyui", "--save_to", out / "comfyui.safetensors"],
            ["convert", "--lora_path", calibrated, "--to", "peft", "--biases", "lora_bias", "--norms", "drop",
             "--save_to", out / "peft"],
            ["merge", "--lora_path", plain, calibrated, "--lora_scale", "0.5", "0.5", "--save_to",
             out / "merged.safetensors"],
            ["resize", "--lora_path", plain, "--rank", "2", "--save_to", out / "resized.safetensors"],
            ["refine", *pair, "--lora_path", plain, "--images", images, "--steps", "2", "--batch_size", "1",
             "--timesteps", "250", "--save_to", out / "refined.safetensors", *network],
            ["validate", *pair, "--lora_path", plain, "--images", images, "--report", out / "report", *network],
            ["inspect", plain, "--report", out / "facts"],
        ]  # fmt: skip


def written(worker: Worker, place: Place, *more: str) -> dict[str, str]:
    """Run the commands; returns the contents of the outputs."""
    for words in place.commands():
        outcome = worker.run([*map(str, words), *more], SECONDS)
        assert outcome.code == 0, outcome
    return contents(place.outputs)


def differing(one: dict[str, str], other: dict[str, str]) -> set[str]:
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    found = Worker(PYTHONHASHSEED="0")
    yield found
    found.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("one")
    inputs = folder / "in"
    shutil.copytree(bundled.TUNED, inputs / "tuned")
    (inputs / "images").mkdir()
    for index in range(2):
        image(index, 128).save(inputs / f"images/{index}.png")
    with TarWriter(str(inputs / "000000.tar"), encoder=False, mtime=0) as tar:
        tar.write({"__key__": "000000", "source.png": png(image(0))})
    return Place(inputs, folder / "out")


@pytest.fixture(scope="module")
def first(worker: Worker, place: Place) -> dict[str, str]:
    return written(worker, place, "--threads", "1")


def test_in_the_same_folder_with_another_hash_seed(place: Place, first: dict[str, str]) -> None:
    other = Worker(PYTHONHASHSEED="7")
    try:
        shutil.rmtree(place.outputs / "shards")  # else they are there already
        assert differing(first, written(other, place, "--threads", "1")) == set()
    finally:
        other.close()


def test_in_another_folder(worker: Worker, place: Place, first: dict[str, str], tmp_path: Path) -> None:
    other = Place(tmp_path / "a longer name/in", tmp_path / "elsewhere/out")
    shutil.copytree(place.inputs, other.inputs)
    assert differing(first, written(worker, other, "--threads", "1")) == set()


def test_with_two_threads(worker: Worker, place: Place, first: dict[str, str]) -> None:
    """Only network outputs, and files made from them, may differ in their last bits."""
    shutil.rmtree(place.outputs)
    found = differing(first, written(worker, place, "--threads", "2"))
    assert {name for name in found if name.startswith(WITHOUT_A_NETWORK)} == set()
