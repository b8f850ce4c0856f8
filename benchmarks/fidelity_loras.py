"""The LoRAs that the fidelity benchmark compares: each set is one command, made where it is not there yet."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.fidelity_measure import Held
from lbm_lora import bundled
from lbm_lora.atomic import write_text
from lbm_lora.calibrate import Statistics, load_statistics, save_statistics
from lbm_lora.workflows import base, calibrate, extract, refine
from lbm_lora.workflows.choosing import Prediction

RANKS = (1, 2, 4, 8, 16)
TUNED = bundled.TUNED / "model.safetensors"

Set = dict[str, Any]
"""`seconds` that making it took, and `files`: word -> outputs, bytes and prediction."""

Made = tuple[str, Path, Prediction | None]
"""Word, LoRA, and what was predicted of it."""


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Pictures to calibrate and to refine on, and others to measure on.

    Attributes:
        folder: for what is made of it.
    """

    folder: Path
    calibration: tuple[Path, ...]
    refinement: tuple[Path, ...]
    held: tuple[Path, ...]


class Loras:
    """Makes and measures sets of LoRAs. What is in the folder already is taken as it is."""

    def __init__(self, fold: Fold) -> None:
        self.fold = fold
        fold.folder.mkdir(parents=True, exist_ok=True)
        self._held: Held | None = None

    @property
    def base(self) -> Path:
        path = self.fold.folder / "base.safetensors"
        if not path.exists():
            base.run(base.BaseConfig(config_path=bundled.TUNED / "config.yaml", save_path=path, tuned_model_path=TUNED))
        return path

    def statistics(self, name: str, pictures: Sequence[Path], **settings: Any) -> Path:
        """Statistics of some pictures: of links to them, in one folder.

        Args:
            settings: of `CalibrateConfig`.
        """
        path = self.fold.folder / f"{name}.statistics.safetensors"
        if path.exists():
            return path
        images = self._linked(name, pictures)
        started = time.monotonic()
        calibrate.run(
            calibrate.CalibrateConfig(
                tuned_model_path=TUNED, images=str(images), save_to=path, torch_dtype="float", device="cpu", **settings
            )
        )
        write_text(self._seconds(name), f"{time.monotonic() - started:.1f}\n")
        return path

    def _linked(self, name: str, pictures: Sequence[Path]) -> Path:
        """A folder with links to some pictures."""
        images = self.fold.folder / f"{name}.images"
        images.mkdir(exist_ok=True)
        for index, picture in enumerate(pictures):
            link = images / f"{index:04}{picture.suffix}"
            link.unlink(missing_ok=True)
            link.symlink_to(picture.resolve())
        return images

    def calibration_seconds(self) -> dict[str, float]:
        """Name -> how long measuring its statistics took."""
        names = [path.name.partition(".")[0] for path in sorted(self.fold.folder.glob("*.statistics.seconds"))]
        return {name: float(self._seconds(name).read_text()) for name in names}

    def _seconds(self, name: str) -> Path:
        return self.fold.folder / f"{name}.statistics.seconds"

    def derived(self, name: str, source: Path, change: Callable[[Statistics], Statistics]) -> Path:
        """Statistics made of others."""
        path = self.fold.folder / f"{name}.statistics.safetensors"
        if not path.exists():
            save_statistics(change(load_statistics(source)), path)
        return path

    def plain(self) -> Set:
        """Plain SVD with one rank for all layers: what all sizes are taken from."""
        flags = {"rank": RANKS[-1], "conv_rank": RANKS[-1], "ranks": RANKS}
        return self.measured("plain", flags, [f"r{rank}" for rank in RANKS])

    def plain_convs(self) -> Set:
        """Plain SVD with twice the rank for convs, which serves this model better."""
        flags = {"rank": RANKS[-2], "conv_rank": 2 * RANKS[-2], "ranks": RANKS[:-1]}
        return self.measured("plain_convs", flags, [f"r{rank}" for rank in RANKS[:-1]])

    def sized(self, name: str, sizes: Sequence[int], **flags: Any) -> Set:
        """Ranks chosen for all layers together, in files of these sizes."""
        words = tuple(f"{size}B" for size in sizes)
        return self.measured(name, {"max_size": words, **flags}, words)

    def refined(self, name: str, source: str) -> Set:
        """The files of a set, each refined."""

        def make() -> list[Made]:
            images = self._linked("refinement", self.fold.refinement)
            made: list[Made] = []
            for word in json.loads((self.fold.folder / f"{source}.json").read_text())["files"]:
                config = refine.RefineConfig(
                    base_model_path=self.base,
                    tuned_model_path=TUNED,
                    lora_path=self.fold.folder / f"{source}_{word}.safetensors",
                    save_to=self.fold.folder / f"{name}_{word}.safetensors",
                    images=str(images),
                    device="cpu",
                )
                made.append((word, refine.run(config).adapter, None))
            return made

        return self._noted(name, make)

    def measured(self, name: str, flags: Mapping[str, Any], words: Sequence[str]) -> Set:
        """One set that one command makes, in the order of the words.

        Args:
            flags: of `ExtractConfig`.
            words: that the files' names end in.
        """

        def make() -> list[Made]:
            first = extract.run(
                extract.ExtractConfig(
                    base_model_path=self.base,
                    tuned_model_path=TUNED,
                    save_to=self.fold.folder / f"{name}.safetensors",
                    device="cpu",
                    **flags,
                )
            )
            results = zip(words, [first, *first.further], strict=True)
            return [(word, result.adapter, result.predicted) for word, result in results]

        return self._noted(name, make)

    def _noted(self, name: str, make: Callable[[], list[Made]]) -> Set:
        """Outputs and predictions of the files that are made, and how long that took; what was noted, where it was."""
        note = self.fold.folder / f"{name}.json"
        if note.exists():
            return json.loads(note.read_text())
        print(f"  {self.fold.folder.name}: {name}", flush=True)
        started = time.monotonic()
        made = make()
        seconds = round(time.monotonic() - started, 1)
        files = {
            word: {**self.held.measure(path), "predicted": asdict(predicted) if predicted else None}
            for word, path, predicted in made
        }
        found: Set = {"seconds": seconds, "files": files}
        write_text(note, json.dumps(found, indent=1) + "\n")
        return found

    def has(self, name: str) -> bool:
        """Whether a set was made before."""
        return (self.fold.folder / f"{name}.json").exists()

    def base_outputs(self) -> dict[str, Any]:
        """Of the base without a LoRA."""
        note = self.fold.folder / "base.json"
        if not note.exists():
            write_text(note, json.dumps(self.held.measure(None)) + "\n")
        return json.loads(note.read_text())

    @property
    def held(self) -> Held:
        if self._held is None:
            self._held = Held(self.base, TUNED, self.fold.held)
        return self._held
