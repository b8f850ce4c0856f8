"""Sets of LoRAs to compare: each is one method at several sizes, created if missing."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import MINI_TUNED, arguments, lbm_lora, mini_base
from benchmarks.fidelity.kinds import ALIKE, HELD_OUT, SHIFTED, kinds
from benchmarks.fidelity.numbers import RANKS
from benchmarks.fidelity.outputs import HeldOut
from benchmarks.fidelity.statistics import REDUCED
from lbm_lora import bundled, load_adapter
from lbm_lora.adapter import module_bytes
from lbm_lora.calibration import load_statistics, save_statistics
from lbm_lora.files import write_text

ALL_KINDS = (HELD_OUT, *SHIFTED)
_CHANNELS = ("full", "sketch")  # statistics with one moment for all positions of a conv's kernel
_SMALL = ("20kB", "30kB", "40kB", "70kB", "110kB", "160kB", "230kB", "500kB")  # of packed files, below rank 1
_BELOW = (0.85, 0.7, 0.5, 0.25, 0.0)  # of all matrices' header entries: sizes below that of rank 1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Recipe for a set of files; the default sizes are those of the plain set."""

    statistics: str = ""  # name of the statistics to extract with; none: weight error
    small: bool = False  # sizes below that of rank 1
    sizes: tuple[str, ...] = ()  # other sizes
    flags: Mapping[str, Any] = field(default_factory=dict[str, Any])  # more flags of `extract`
    ranks: Mapping[int, int] = field(default_factory=dict[int, int])  # rank -> conv rank, instead of sizes
    refit: bool = False  # refit on the calibration images
    shifted: bool = False  # also measure on images unlike those of the calibration
    alike: bool = False  # also measure on other images of the calibration's kind


_FP16, _INT8, _AUTO = ({"save_precision": name} for name in ("fp16", "int8", "auto"))
_QUICK = {"no_check": True}
_COUNTS = {f"images_{count}": count for count in (1, 4, 16)}
RECIPES: Mapping[str, Recipe] = {
    "plain": Recipe(ranks={rank: rank for rank in RANKS}, shifted=True),
    "plain_convs": Recipe(ranks={rank: 2 * rank for rank in RANKS[:-1]}, shifted=True),
    "full": Recipe(statistics="full", flags=_FP16, shifted=True),
    "small": Recipe(statistics="full", flags=_FP16, small=True),
    "int8": Recipe(statistics="full", flags=_INT8, shifted=True),
    "int8_small": Recipe(statistics="full", flags=_INT8, small=True),
    "auto": Recipe(statistics="full", flags=_AUTO),
    "auto_convs": Recipe(statistics="convs", flags=_AUTO),
    "auto_refit": Recipe(flags=_AUTO, refit=True, shifted=True, alike=True),
    "auto_small": Recipe(statistics="convs", flags=_AUTO, sizes=_SMALL, shifted=True, alike=True),
    "plain_global": Recipe(),
    **{name: Recipe(statistics=name, flags=_FP16 | _QUICK) for name in (*REDUCED, "sketch")},
    **{name: Recipe(statistics=name, flags=_AUTO | _QUICK) for name in (*_COUNTS, "photos")},
}
"""Map from set to its recipe. Sets that are not refit are made with `--no_refit`; `full` statistics have one moment for
all positions of a conv's kernel, and `convs`, like the counts of images, keep the positions."""


class Sets:
    """Make and measure sets in a folder, reusing what exists.

    Args:
        calibration, held_out: sources to calibrate on, and to measure on.
        alike: sources of the calibration's kind to measure on.
    """

    def __init__(
        self, folder: Path, *, calibration: Sequence[Path], held_out: Sequence[Path], alike: Sequence[Path] = ()
    ) -> None:
        self._folder, self._calibration, self._images, self._alike = folder, calibration, held_out, alike
        folder.mkdir(parents=True, exist_ok=True)

    def measured(self, name: str) -> dict[str, Any]:
        """Return a set: `seconds` to make it, and `files`: size -> scores, bytes and prediction.

        For `base`, return the scores of the base without a LoRA.
        """
        note = self._folder / f"{name}.json"
        if not note.exists():
            print(f"  {name}", flush=True)
            found = self._held_out.measure(None, ALL_KINDS) if name == "base" else self._make(name)
            write_text(note, json.dumps(found, indent=1) + "\n")
        return json.loads(note.read_text())

    def calibration_seconds(self) -> dict[str, float]:
        """Return name -> seconds to measure its statistics."""
        return {path.stem: float(path.read_text()) for path in sorted(self._folder.glob("*.seconds"))}

    def _make(self, name: str) -> dict[str, Any]:
        recipe, flags = RECIPES[name], dict(RECIPES[name].flags)
        sizes = self._sizes(recipe)
        if recipe.refit:  # on the images that it calibrates on first
            flags["calibration_images"] = self._linked(name, self._calibration)
        elif recipe.statistics:
            flags |= {"calibration": self._statistics(recipe.statistics), "no_refit": True}
        started = time.monotonic()
        if recipe.ranks:
            results = [
                self._extract(f"{name}_r{rank}", rank=rank, conv_rank=conv, **flags)
                for rank, conv in recipe.ranks.items()
            ]
        else:
            first = self._extract(name, max_size=sizes, **flags)
            results = [first, *first["further"]]
        seconds = round(time.monotonic() - started, 1)
        measured_on = [*(ALL_KINDS if recipe.shifted else (HELD_OUT,)), *(self._alike_kinds if recipe.alike else ())]
        files = {
            size: {**self._held_out.measure(Path(one["adapter"]), measured_on), "predicted": one.get("predicted")}
            for size, one in zip(sizes, results, strict=True)
        }
        return {"seconds": seconds, "files": files}

    def _extract(self, name: str, **flags: Any) -> dict[str, Any]:
        return lbm_lora(arguments("extract", **self._pair, save_to=self._lora(name), device="cpu", **flags))

    def _sizes(self, recipe: Recipe) -> tuple[str, ...]:
        """Return the names of a set's files: sizes for `extract`, or ranks."""
        if recipe.ranks or recipe.sizes:
            return recipe.sizes or tuple(f"r{rank}" for rank in recipe.ranks)
        plain = self.measured("plain")["files"]
        if not recipe.small:
            return tuple(f"{file['nbytes']}B" for file in plain.values())
        # below rank 1, required content leaves little room for matrices: their header entries are dropped first
        adapter = load_adapter(self._lora("plain_r1"))
        shapes = {name: module.shape for name, module in adapter.modules.items()}
        entries = sum(module_bytes(adapter.prefix, name, shape, 0, torch.bfloat16) for name, shape in shapes.items())
        rest = plain["r1"]["nbytes"] - plain["r1"]["matrix_bytes"]
        return tuple(f"{rest - round(share * entries)}B" for share in _BELOW)

    def _statistics(self, name: str) -> Path:
        """Return the statistics of calibration images, full or reduced."""
        path = self._folder / f"{name}.statistics.safetensors"
        if name in REDUCED and not path.exists():
            save_statistics(REDUCED[name](load_statistics(self._statistics("full"))), path)
        if not path.exists():
            started = time.monotonic()
            photos = sorted(bundled.PHOTOS.glob("*.jpg"))
            images = photos if name == "photos" else spread(self._calibration, _COUNTS.get(name))
            flags = {"conv_dense_up_to": 0} if name in _CHANNELS else {}
            flags |= {"dense_up_to": 0, "sketch_rank": 16} if name == "sketch" else {}
            flags |= {"torch_dtype": "float", "device": "cpu", "images": self._linked(name, images)}
            lbm_lora(arguments("calibrate", tuned_model_path=MINI_TUNED, save_to=path, **flags))
            write_text(self._folder / f"{name}.seconds", f"{time.monotonic() - started:.1f}\n")
        return path

    def _linked(self, name: str, images: Sequence[Path]) -> Path:
        """Create a folder with links to images."""
        folder = self._folder / f"{name}.images"
        folder.mkdir(exist_ok=True)
        for index, image in enumerate(images):
            link = folder / f"{index:04}{image.suffix}"
            link.unlink(missing_ok=True)
            link.symlink_to(image.resolve())
        return folder

    def _lora(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"

    @property
    def _alike_kinds(self) -> tuple[str, ...]:
        return tuple(ALIKE) if self._alike else ()

    @cached_property
    def _pair(self) -> dict[str, Path]:
        return {"base_model_path": mini_base(self._folder / "base.safetensors"), "tuned_model_path": MINI_TUNED}

    @cached_property
    def _held_out(self) -> HeldOut:
        made = kinds(self._folder / "noise", self._images, self._alike)
        return HeldOut(self._pair["base_model_path"], MINI_TUNED, made)


def spread(images: Sequence[Path], count: int | None) -> Sequence[Path]:
    """Return this many images, evenly spread over the list; all of them if it has no more, or for None."""
    if count is None or count >= len(images):
        return images
    return [images[index * len(images) // count] for index in range(count)]
