"""The choices of an extraction, run before they are written: predictions checked, an error or a PSNR reached."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lbm_lora.errors import InputError
from lbm_lora.extract import Choice
from lbm_lora.workflows.choosing import Chosen, Policy
from lbm_lora.workflows.search import smallest

if TYPE_CHECKING:
    from lbm_lora.workflows.trial import Pictures, Trial

_TOGETHER = -6.0  # dB: how much smaller than foreseen an error is before anything was run: layers' errors add up


@dataclass(frozen=True, kw_only=True)
class PictureScores:
    """The one-step pictures of base + LoRA against the tuned model's, decoded in fp32."""

    count: int
    mean_psnr: float
    """dB, of float pictures in [-1, 1]."""
    worst_psnr: float
    worst_image: str
    predicted_psnr: float | None = None
    """Of the worst picture, before this LoRA was run; where a PSNR was asked for."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A choice, and its pictures where they were compared."""

    choice: Choice
    pictures: PictureScores | None = None

    @property
    def errors(self) -> dict[str, float]:
        """What the file's metadata says of it."""
        return {"measured_worst_psnr": self.pictures.worst_psnr} if self.pictures else {}


def tried(chosen: Chosen, policy: Policy, trial: "Trial | None") -> list[Tried]:
    """The choices of a policy. With a trial each is run, and those that aim at an error or a PSNR are corrected.

    Raises:
        InputError: no choice of ranks reaches what is asked for.
    """
    if trial is None:
        return [Tried(choice=choice) for choice in chosen.choices(policy)]
    if policy.psnr is not None:
        return [_with_psnr(chosen, trial, policy.psnr)]
    if policy.error is not None and chosen.checks:
        return [_with_error(chosen, trial, policy.error)]
    return [_run(chosen, trial, choice) for choice in chosen.choices(policy)]


def _run(chosen: Chosen, trial: "Trial", choice: Choice) -> Tried:
    _take(chosen, trial, choice)
    chosen.learn(choice, trial.error())
    pictures = trial.pictures()
    return Tried(choice=choice, pictures=_scores(pictures) if pictures else None)


def _with_error(chosen: Chosen, trial: "Trial", error: float) -> Tried:
    """The smallest file with this measured error of the output."""

    def measure(choice: Choice) -> float:
        _take(chosen, trial, choice)
        measured = trial.error() or 0.0
        chosen.learn(choice, measured)
        return -20 * math.log10(max(measured, 1e-9))

    target = -20 * math.log10(error)
    found = smallest(target, chosen.propose, measure, offset=_TOGETHER)
    if found.result < target:
        raise InputError(
            f"--max_output_error {error:g}: the best file, with every change whole, leaves "
            f"{10 ** (-found.result / 20):.3g} in this precision. Ask for more, or use --save_precision fp16 or float."
        )
    _take(chosen, trial, found.proposal.found)
    pictures = trial.pictures()
    return Tried(choice=found.proposal.found, pictures=_scores(pictures) if pictures else None)


def _with_psnr(chosen: Chosen, trial: "Trial", psnr: float) -> Tried:
    """The smallest file with which every picture comes out with this PSNR. The base's own PSNR is the first guess."""
    seen: dict[int, Pictures] = {}

    def compare(nbytes: int) -> "Pictures":
        found = trial.pictures()
        if found is None:
            raise AssertionError("a PSNR is asked for where there are pictures")
        seen[nbytes] = found
        return found

    def measure(choice: Choice) -> float:
        _take(chosen, trial, choice)
        chosen.learn(choice, trial.error())
        return compare(choice.nbytes).worst[1]

    trial.take()
    found = smallest(psnr, chosen.propose, measure, offset=compare(0).worst[1])
    choice = found.proposal.found
    if found.result < psnr:
        raise InputError(
            f"--min_psnr {psnr:g}: the best file, with every change whole, gives {found.result:.2f} dB in this "
            "precision. Ask for less, or use --save_precision fp16 or float."
        )
    return Tried(choice=choice, pictures=_scores(seen[choice.nbytes], predicted=found.predicted))


def _take(chosen: Chosen, trial: "Trial", choice: Choice) -> None:
    with chosen.emission([choice]) as emission:
        trial.take(outcome for (outcome,) in emission)


def _scores(pictures: "Pictures", predicted: float | None = None) -> PictureScores:
    name, worst = pictures.worst
    return PictureScores(
        count=len(pictures.psnrs),
        mean_psnr=pictures.mean,
        worst_psnr=worst,
        worst_image=name,
        predicted_psnr=predicted,
    )
