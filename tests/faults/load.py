"""One process that works for long: how its memory grows. Run alone, so that nothing of the tests is measured.

    python -m faults.load cycles --cycles 200 --warm_up 20
    python -m faults.load shards --images 10000

Prints a line of JSON. Memory is the resident set of the process (VmRSS of /proc/self/status), after a collection of
Python's garbage and `malloc_trim`: memory that was given back to malloc, and that malloc keeps, counts as free.
`untrimmed` is the same without these two.
"""

import argparse
import ctypes
import gc
import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from faults.goods import image, png
from webdataset.writer import TarWriter

from lbm_lora import bundled
from lbm_lora.adapter import load_adapter
from lbm_lora.apply import ScaledAdapter, inject
from lbm_lora.cli.main import main as command
from lbm_lora.model.pipeline import LBMPipeline
from nano import write_nano

SIZE = 64
"""Pixels, the smallest size that commands accept."""
PER_SHARD = 500


def resident() -> int:
    """Bytes of this process in memory."""
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) * 1024 for row in rows if row.startswith("VmRSS:"))


def settled() -> int:
    """Bytes in memory that are in use."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident()


def lora_of_mini(folder: Path) -> Path:
    """A LoRA of the mini model, with biases and norms."""
    base, lora = folder / "base.safetensors", folder / "lora.safetensors"
    tuned = bundled.TUNED / "model.safetensors"
    config = bundled.TUNED / "config.yaml"
    run("base", "--config_path", config, "--backbone_signature", bundled.BACKBONE, "--save_path", base)
    run("extract", "--base_model_path", base, "--tuned_model_path", tuned, "--save_to", lora, "--rank", 4)
    return lora


def run(*words: object) -> None:
    assert command([str(word) for word in words]) == 0, words


def cycle(base: Path, lora: Path) -> np.ndarray:
    """Load a model and a LoRA, by both ways put it in, translate, take it out, and translate again."""
    pipe = LBMPipeline.from_checkpoint(base, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    source = image(0, SIZE)
    plain = pipe(source, size=SIZE).images[0]
    injection = inject(pipe.unet, [ScaledAdapter(load_adapter(lora))])
    injected = pipe(source, size=SIZE).images[0]
    injection.eject()
    pipe.load_lora_weights(lora)
    assert pipe(source, size=SIZE).images[0] == injected
    pipe.fuse_lora()
    pipe(source, size=SIZE)
    pipe.unload_lora_weights()
    again = pipe(source, size=SIZE).images[0]
    assert again == plain != injected
    return np.asarray(injected)


def cycles(count: int, warm_up: int) -> dict[str, float]:
    """Memory after a warm-up and at the end."""
    with tempfile.TemporaryDirectory() as folder:
        lora = lora_of_mini(Path(folder))
        base = Path(folder) / "base.safetensors"
        first = made = cycle(base, lora)
        found: list[tuple[int, int]] = []
        begin = time.perf_counter()
        for number in range(2, count + 1):
            made = cycle(base, lora)
            if number in (warm_up, count):
                found.append((resident(), settled()))
        assert np.array_equal(first, made)
        seconds = time.perf_counter() - begin
    (early_untrimmed, early), (late_untrimmed, late) = found
    return {
        "cycles": count, "warm_up": warm_up, "early": early, "late": late, "growth": late / early - 1,
        "untrimmed_growth": late_untrimmed / early_untrimmed - 1, "seconds_per_cycle": seconds / (count - 1),
    }  # fmt: skip


class Watch(threading.Thread):
    """Takes the memory of the process a few times a second, as it is: nothing is collected or trimmed."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: list[int] = []
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(0.2):
            self.seen.append(resident())

    def close(self) -> list[int]:
        self._end.set()
        self.join()
        return self.seen


def stream(images: int, *, is_folder: bool, compare: bool) -> dict[str, float]:
    """Memory while `infer` translates shards or a folder with the nano model: peak of the first fifth, and of all."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = write_nano(folder, torch.float32)
        model = ["--base_model_path", base, "--size", SIZE, "--device", "cpu", "--output_path", folder / "out"]
        if is_folder:
            (folder / "in").mkdir()
            for number in range(images):
                (folder / f"in/{number:06d}.png").write_bytes(png(image(number, SIZE)))
            source = ["--source_image", folder / "in", *(["--compare"] if compare else [])]
        else:
            source = ["--source_shards", *write_shards(folder, images)]
        settled()
        watch, begin = Watch(), time.perf_counter()
        watch.start()
        run("infer", *model, *source)
        seconds = time.perf_counter() - begin
        seen = watch.close()
    early = max(seen[: len(seen) // 5])
    return {
        "images": images, "early": early, "late": max(seen), "growth": max(seen) / early - 1,
        "seconds_per_image": seconds / images,
    }  # fmt: skip


def write_shards(folder: Path, images: int) -> list[Path]:
    paths: list[Path] = []
    for start in range(0, images, PER_SHARD):
        paths.append(folder / f"{start:06d}.tar")
        with TarWriter(str(paths[-1]), encoder=False, mtime=0) as tar:
            for number in range(start, min(images, start + PER_SHARD)):
                tar.write({"__key__": f"{number:06d}", "source.png": png(image(number, SIZE))})
    return paths


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("cycles", "shards", "folder"))
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--warm_up", type=int, default=20)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--compare", action="store_true")
    options = parser.parse_args(argv)
    if options.what == "cycles":
        found = cycles(options.cycles, options.warm_up)
    else:
        found = stream(options.images, is_folder=options.what == "folder", compare=options.compare)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
