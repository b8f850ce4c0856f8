"""What the proofs of training measure: pictures against their targets, the validation loss, and what has changed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.relight_pairs import Pair
from lbm_lora.adapter import Adapter, load_adapter
from lbm_lora.apply import ScaledAdapter, fuse_module
from lbm_lora.imaging.tensors import to_images, to_tensor
from lbm_lora.infer.pipeline import translate
from lbm_lora.model.build import LBMModel, load_model
from lbm_lora.naming import select
from lbm_lora.train.data import open_data
from lbm_lora.train.loss.objective import objective_of
from lbm_lora.train.loss.step import BridgeStep
from lbm_lora.train.run.validation import Validator
from lbm_lora.train.settings.train_config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How near pictures are to their targets, dB, one value for each pair."""

    whole: list[float]
    inside: list[float]


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What training has done to the lora modules of a file, counted by module.

    Attributes:
        selected: that were to learn.
        selected_changed: of them, those whose up and down factors both differ.
        others_changed: not selected, and not equal bit for bit.
        dense_changed: whole deltas (biases, norms) that are not equal bit for bit.
    """

    selected: int
    selected_changed: int
    others: int
    others_changed: int
    dense: int
    dense_changed: int

    @property
    def as_told(self) -> bool:
        """Every selected module has changed and nothing else."""
        return self.selected == self.selected_changed and not self.others_changed and not self.dense_changed


def open_model(checkpoint: Path, lora: Path | None = None) -> LBMModel:
    """A model in fp32, a LoRA fused into it where one is given."""
    model = load_model(checkpoint, dtype=torch.float32)
    if lora is not None:
        fuse_module(model.denoiser, [ScaledAdapter(load_adapter(lora))])
    return model


def quality(model: LBMModel | None, pairs: Iterable[Pair]) -> Quality:
    """One step on every source; without a model, of the sources themselves. Pictures are compared in 8 bits."""
    whole: list[float] = []
    inside: list[float] = []
    for pair in pairs:
        made = pair.source if model is None else _translated(model, pair.source)
        whole.append(psnr(made, pair.target))
        inside.append(psnr(made, pair.target, pair.mask))
    return Quality(whole=whole, inside=inside)


def psnr(one: np.ndarray, other: np.ndarray, mask: np.ndarray | None = None) -> float:
    """dB of two uint8 pictures (height, width, 3), weighted by a mask (height, width) where one is given."""
    squared = np.square(one.astype(np.float64) - other.astype(np.float64)).mean(-1)
    error = np.average(squared, weights=mask)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def summed_up(found: Mapping[str, Quality]) -> dict[str, dict[str, float]]:
    """Means over the pairs, and the share of pairs that are nearer, inside the mask, than the one named `source`."""
    source = np.array(found["source"].inside)
    return {
        name: {
            "whole": round(float(np.mean(one.whole)), 3),
            "inside": round(float(np.mean(one.inside)), 3),
            "better_than_source": round(float(np.mean(np.array(one.inside) > source)), 4),
        }
        for name, one in found.items()
    }


def gap(one: Quality, other: Quality) -> dict[str, dict[str, float]]:
    """What one is over the other, pair by pair: the mean and its standard error, dB."""
    found: dict[str, dict[str, float]] = {}
    for where in ("whole", "inside"):
        differences = np.subtract(getattr(one, where), getattr(other, where))
        error = float(differences.std(ddof=1)) / len(differences) ** 0.5
        found[where] = {"mean": round(float(differences.mean()), 3), "standard_error": round(error, 3)}
    return found


def validation_loss(model: LBMModel, config: TrainConfig) -> dict[str, Any]:
    """What a validation of training finds: the same pairs, timesteps and noise for every model."""
    dataset = open_data(config, "validation", seed=config.seed)
    validator = Validator(dataset, count=config.validation_samples, num_steps=config.num_steps, lpips=None)
    step = BridgeStep(model=model, objective=objective_of(config, model.config), seed=config.seed)
    made = validator.run(step)
    assert made is not None, "nothing stops it"
    scores, _ = made
    return {"loss": scores.loss, "losses": scores.losses, "pairs": scores.samples}


def changes(before: Adapter, after: Adapter, patterns: Sequence[str]) -> Changes:
    """Compare two files' tensors.

    Raises:
        ValueError: they do not have the same modules and dense deltas.
    """
    if before.modules.keys() != after.modules.keys() or before.dense.keys() != after.dense.keys():
        raise ValueError("the two files do not have the same modules")
    chosen = select(before.modules, patterns)
    moved: dict[bool, int] = {True: 0, False: 0}
    for name, one in before.modules.items():
        other = after.modules[name]
        same = [torch.equal(one.up.float(), other.up.float()), torch.equal(one.down.float(), other.down.float())]
        if name in chosen:
            moved[True] += not any(same)
        else:
            moved[False] += not (all(same) and one.scaling == other.scaling)
    dense = [not torch.equal(delta.float(), after.dense[name].float()) for name, delta in before.dense.items()]
    return Changes(
        selected=len(chosen),
        selected_changed=moved[True],
        others=len(before.modules) - len(chosen),
        others_changed=moved[False],
        dense=len(dense),
        dense_changed=sum(dense),
    )


def as_numbers(found: Changes) -> dict[str, Any]:
    """For a result file."""
    return asdict(found) | {"as_told": found.as_told}


def _translated(model: LBMModel, source: np.ndarray) -> np.ndarray:
    return np.asarray(to_images(translate(model, to_tensor([Image.fromarray(source)])))[0])
