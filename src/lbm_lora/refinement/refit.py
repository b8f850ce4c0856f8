"""Refit extracted LoRAs jointly on images, before an extraction is reported."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from lbm_lora.adapter import load_adapter, save_adapter
from lbm_lora.adapter.metadata import ERRORS_KEY, compact, parsed, rounded
from lbm_lora.checkpoint import Component, Pairing
from lbm_lora.extraction import DeltaSettings, ExtractedAdapter
from lbm_lora.fidelity.weights import compare_weights
from lbm_lora.files import current
from lbm_lora.model.build import LBMModel, load_model
from lbm_lora.model.streamed_weights import LARGE
from lbm_lora.naming import ParamName
from lbm_lora.progress import Progress
from lbm_lora.ranks import Prediction, Trial
from lbm_lora.refinement.images import answered_images, calibration_split
from lbm_lora.refinement.joint import JointResult, JointSettings, refit_points


def refitted(
    found: Sequence[ExtractedAdapter],
    pairing: Pairing,
    images: Sequence[Path],
    settings: DeltaSettings,
    *,
    config_path: Path | None,
    open_trial: Callable[[], Trial | None],
    progress: Progress,
) -> list[ExtractedAdapter]:
    """Refit LoRAs on images; each one that is better afterwards replaces its file, and its ledger and errors.

    Args:
        found: the LoRAs of a calibrated extraction, in their files or in memory.
        images: images of the calibration; those that it held out are held out again.
        open_trial: opens the trial that measured the LoRAs' errors and images.
    """
    if skipped := _reason_to_skip(pairing.tuned, images, settings):
        progress.note(f"Biases, norms and ranks are not refitted: {skipped}.")
        return list(found)
    progress.start(0, "loading the tuned model")
    checkpoint = pairing.tuned.checkpoint
    model = load_model(checkpoint, config_path=config_path, device=settings.device, dtype=torch.float32)
    learnt, held = answered_images(
        model,
        calibration_split(images),
        timesteps=(),
        size=None,
        seed=0,
        mirror=False,
        progress=progress,
    )
    _make_base(model, pairing.base)
    results: list[JointResult] = []
    for one in found:
        adapter = one.adapter or load_adapter(current(cast(Path, one.output.path)))
        made = refit_points(model, adapter, learnt, held, JointSettings(), dtype=settings.dtype, progress=progress)
        results.append(made)
    del model  # the trial loads another one
    trial = open_trial() if any(result.step for result in results) else None
    return [
        _replaced(one, result, pairing, trial) if result.step else one
        for one, result in zip(found, results, strict=True)
    ]


def _reason_to_skip(tuned: Component, images: Sequence[Path], settings: DeltaSettings) -> str:
    """Return why a refit makes no sense, or takes too long to be the default; empty otherwise."""
    if len(images) < 2:
        return "this needs two images or more, of which it holds one out"
    count = sum(spec.numel for spec in tuned.specs.values())
    if count > LARGE and settings.device.type == "cpu":
        return (
            f"on the CPU this would take hours for a denoiser of {count / 1e6:,.0f} million parameters. To do it "
            "nevertheless, or on a GPU: lbm-lora refine --method joint"
        )
    return ""


def _make_base(model: LBMModel, base: Component) -> None:
    """Give the denoiser the base's values. Parameters that the base lacks keep the tuned ones."""
    for name, parameter in model.denoiser.named_parameters():
        param = ParamName(name)
        if param in base and base.specs[param].shape == tuple(parameter.shape):
            parameter.data = base.read(param).float().to(parameter.device)


def _replaced(found: ExtractedAdapter, result: JointResult, pairing: Pairing, trial: Trial | None) -> ExtractedAdapter:
    ledger = compare_weights(pairing, result.adapter)
    predicted, chosen = _predicted(found.predicted, result), found.chosen
    if trial is not None:
        trial.take(result.adapter.stored())
        errors = trial.error()
        if predicted is not None and errors is not None:
            predicted = replace(
                predicted,
                error=errors.typical,
                measured=errors.typical,
                low=errors.low,
                high=errors.high,
                shifted=errors.shifted,
                shifted_within=errors.shifted_within,
            )
        if chosen is not None and chosen.images is not None:
            images = trial.images()
            assert images is not None
            chosen = replace(chosen, images=replace(images, predicted_psnr=chosen.images.predicted_psnr))
    facts: dict[str, object] = {
        **parsed(result.adapter.metadata.facts, ERRORS_KEY),
        "relative_error": rounded(ledger.total().relative_error),
        "held_output_error_before_refit": rounded(result.before.typical),
        "held_output_error": rounded(result.after.typical),
    }
    if predicted is not None:
        facts |= {name: rounded(error) for name, error in predicted.facts().items()}
    if chosen is not None and chosen.images is not None:
        facts["measured_worst_psnr"] = rounded(chosen.images.worst_psnr)
    metadata = result.adapter.metadata
    made = replace(result.adapter, metadata=replace(metadata, facts={**metadata.facts, ERRORS_KEY: compact(facts)}))
    if found.output.path is not None:
        save_adapter(made, found.output.path)
    return replace(
        found, adapter=None if found.adapter is None else made, ledger=ledger, predicted=predicted, chosen=chosen
    )


def _predicted(predicted: Prediction | None, result: JointResult) -> Prediction | None:
    """Return a prediction with the gain that was measured on held-out images."""
    if predicted is None:
        return None
    factor = result.after.typical / result.before.typical
    known = {name: getattr(predicted, name) for name in ("error", "measured", "low", "high")}
    return replace(
        predicted,
        **{name: factor * value for name, value in known.items() if value is not None},
        shifted={kind: factor * error for kind, error in predicted.shifted.items()},
        shifted_within={kind: (factor * low, factor * high) for kind, (low, high) in predicted.shifted_within.items()},
    )
