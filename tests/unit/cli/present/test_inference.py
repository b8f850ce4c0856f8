"""What a user reads of translated images and shards, and of the demo."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lbm_lora.cli.present import present
from lbm_lora.errors import OutputError
from lbm_lora.inference.jobs import FailedImage
from lbm_lora.shards.samples import Skipped
from lbm_lora.verbs.lines import file_lines
from lbm_lora.workflows.infer import InferResult, TranslatedImage
from lbm_lora.workflows.infer_shards import InferShardsResult

File = Callable[[str, int], Path]


@pytest.fixture
def translated() -> InferResult:
    cup = TranslatedImage(
        source=Path("in/cup.png"),
        output=Path("out/cup.png"),
        comparison=None,
        source_copy=None,
        width=640,
        height=480,
        model_width=512,
        model_height=384,
        seconds=0.25,
    )
    tree = replace(
        cup,
        source=Path("in/tree.jpg"),
        output=Path("out/tree.jpg"),
        comparison=Path("out/tree_compare.jpg"),
        source_copy=Path("out/tree_input.jpg"),
    )
    return InferResult(outputs=(cup, tree), failed=(), present=0, adapters=(), device="cpu", dtype="bf16")


IMAGES = """\
Translated 2 images on cpu in bf16:
  cup.png 640x480 -> out/cup.png (model 512x384, 0.2 s)
  tree.jpg 640x480 -> out/tree.jpg (model 512x384, 0.2 s)
    side by side: out/tree_compare.jpg
    source: out/tree_input.jpg"""


def test_images(translated: InferResult) -> None:
    assert present("infer", translated) == IMAGES


def test_a_line_break_in_a_name_breaks_no_line(translated: InferResult, tmp_path: Path) -> None:
    odd = replace(translated.outputs[1], source=Path("a\nb.png"), comparison=Path("out/a\nb.png"))
    assert present("infer", replace(translated, outputs=(odd,))).splitlines()[1:3] == [
        "  a\\nb.png 640x480 -> out/tree.jpg (model 512x384, 0.2 s)",
        "    side by side: out/a\\nb.png",
    ]
    (tmp_path / "a\nb").write_bytes(b"")
    assert file_lines(tmp_path / "a\nb") == f"wrote {tmp_path}/a\\nb (0.0 kB)"


def test_an_image_that_was_removed_since(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"gone\.png was removed after it was written\. Run the command again\.$"):
        file_lines(tmp_path / "gone.png")


def test_images_that_failed_or_were_there(translated: InferResult) -> None:
    failed = (FailedImage(source=Path("in/a\x1b.jpg"), reason="in/a\x1b.jpg cannot be decoded."),)
    head, _, rest = IMAGES.partition(":")
    assert present("infer", replace(translated, failed=failed, present=3)) == (
        f"{head}; 3 images already existed:{rest}\n\n1 image failed:\n  in/a\\x1b.jpg cannot be decoded."
    )
    assert present("infer", replace(translated, outputs=(), present=2)) == (
        "Translated 0 images on cpu in bf16; 2 images already existed."
    )


def shards(*skipped: Skipped, stopped_by: str = "") -> InferShardsResult:
    return InferShardsResult(
        folder=Path("out"),
        written=1,
        present=2,
        images=4,
        skipped=skipped,
        stopped_by=stopped_by,
        adapters=(),
        device="cuda:0",
        dtype="fp16",
        process=0,
    )


def test_shards() -> None:
    head = "Translated 4 images of 1 shard into out on cuda:0 in fp16; 2 shards already existed."
    assert present("infer_shards", shards()) == head
    assert present("infer_shards", shards(stopped_by="SIGTERM")) == (
        f"Stopped by SIGTERM. {head} Run the same command to resume."
    )


def test_samples_that_cannot_be_used() -> None:
    head = "Translated 4 images of 1 shard into out on cuda:0 in fp16; 2 shards already existed."
    skipped = [Skipped(f"a.tar/{index}", "cannot be decoded\x1b") for index in range(10)]
    lines = [rf"  left out: a.tar/{index}: cannot be decoded\x1b" for index in range(10)]
    assert present("infer_shards", shards(skipped[0])) == "\n".join([head, "", "1 sample cannot be used.", lines[0]])
    few = [head, "", "10 samples cannot be used.", *lines[:8], "  and 2 more (--verbose lists them)"]
    assert present("infer_shards", shards(*skipped)) == "\n".join(few)
    every = [head, "", "10 samples cannot be used.", *lines]
    assert present("infer_shards", shards(*skipped), verbose=True) == "\n".join(every)
