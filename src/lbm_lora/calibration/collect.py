"""Collect the statistics of a tuned LBM over images, or of any network that runs over samples, in bounded memory."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial as bound
from pathlib import Path

import torch
from torch import Tensor, nn

from lbm_lora.calibration.hooks import Sample, add_sample, checkpointed, statistics_of
from lbm_lora.calibration.layers import find_layers, matrices
from lbm_lora.calibration.statistics import CalibrationSettings, Origin, Statistics
from lbm_lora.calibration.sums import PartialFile, Sums
from lbm_lora.checkpoint import fingerprint
from lbm_lora.errors import ConfigError, InputError
from lbm_lora.fidelity.checks import held_out
from lbm_lora.fidelity.network import Network, Run, component_of
from lbm_lora.fidelity.network_trial import network_checks
from lbm_lora.fidelity.points import bridge_points, image_latent, image_noise, timestep_tensor
from lbm_lora.imaging.digests import ImageDigests, digests_of
from lbm_lora.model.build import LBMModel
from lbm_lora.model.schedule import schedule_of
from lbm_lora.model.streamed_weights import LARGE
from lbm_lora.naming import ModuleName, select
from lbm_lora.progress import SILENT, Progress

SAVE_EVERY = 600.0
"""Seconds between two saves of the sums."""


def collect(
    model: LBMModel,
    images: Sequence[Path],
    settings: CalibrationSettings | None = None,
    *,
    tuned: str = "",
    around: str = "",
    digests: ImageDigests | None = None,
    partial: PartialFile | None = None,
    save_every: float = SAVE_EVERY,
    is_checkpointed: bool | None = None,
    progress: Progress = SILENT,
) -> Statistics:
    """Measure the input moments and output sensitivities of every layer of the denoiser.

    Of four and more images one in four, 16 at most, is held out: see `check_points.with_checks`.

    Args:
        model: the tuned model, in fp32 or bf16: gradients leave the range of fp16.
        images: source images of the kind that the model is used on.
        tuned, around: digests for the statistics' `Origin`.
        digests: digests of the images if already known; otherwise all images are read before the first is measured.
        partial: file to save the sums to periodically and to resume from; it is not removed.
        save_every: seconds between two saves, each after an image.
        is_checkpointed: recompute activations instead of keeping them; by default for large models.
        progress: counts images times timesteps.
    """
    settings = settings or CalibrationSettings()
    _check_range(model.dtype)
    digests = digests or digests_of(images)
    origin = settings.origin(
        tuned=tuned,
        images=digests.together,
        count=len(digests.each),
        schedule=schedule_of(model.config, settings.timesteps),
        dtype=model.dtype,
        around=around,
    )
    side = 2 ** len(model.config.unet_config["down_block_types"])  # the smallest that every level can halve
    latent = torch.zeros(1, model.config.vae_num_channels, side, side)
    layers = find_layers(model.denoiser, lambda: model.denoise(latent, timestep_tensor(1000.0)))
    sums = _resumed(partial, origin, model.device, progress) or Sums.empty(layers, model.denoiser, origin, model.device)
    held = held_out(len(images))
    measured = [index for index in range(len(images)) if index not in held]
    progress.start((len(measured) - sums.images) * len(origin.schedule), "measuring the tuned model")
    is_large = sum(parameter.numel() for parameter in model.denoiser.parameters()) >= LARGE
    saved = time.monotonic()
    with checkpointed(model.denoiser, when=is_large if is_checkpointed is None else is_checkpointed):
        for index in measured[sums.images :]:
            for sample in _samples(model, images[index], index, origin):
                add_sample(model.denoiser, layers, sample, origin.probes, sums)
                progress.advance()
            sums.images += 1
            if partial is not None and time.monotonic() - saved >= save_every:
                partial.save(sums, origin)
                saved = time.monotonic()
    return statistics_of(model.denoiser, layers, sums, origin, digests.each)


def _check_range(dtype: torch.dtype) -> None:
    if dtype == torch.float16:
        raise ConfigError("calibration gradients exceed the range of fp16. Use bf16 or float.")


def _resumed(partial: PartialFile | None, origin: Origin, device: torch.device, progress: Progress) -> Sums | None:
    if partial is None:
        return None
    sums = partial.load(origin, device)
    if sums is not None:
        progress.note(f"Resuming with {sums.images} of {origin.count} images from {partial.path}.")
    elif partial.path.exists():
        progress.note(f"Replacing {partial.path}, which is from a run with other inputs or settings.")
    return sums


def _samples(model: LBMModel, path: Path, index: int, origin: Origin) -> Iterator[Sample]:
    source = image_latent(model, path, size=origin.size)
    for point in bridge_points(model, source, origin.schedule, image_noise(origin.seed, index)):
        yield Sample(
            forward=bound(model.denoise, point.state, timestep_tensor(point.timestep)),
            weight=point.probability,
            key=(origin.seed, index, point.timestep),
            label=f"{path}: the model's output at timestep {point.timestep:g}",
        )


def collect_network(
    module: nn.Module,
    run: Run,
    settings: CalibrationSettings | None = None,
    *,
    names: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Statistics:
    """Measure the input moments and output sensitivities of the layers of a network.

    Of four and more samples one in four, 16 at most, is held out, to run LoRAs at: see `network_checks`.

    Args:
        module: the tuned network, in evaluation mode, in fp32 or bf16.
        run: yields the network's output for each sample, with its graph. It is called several times, and must always
            yield the same samples in the same order. The first sample must call every layer.
        settings: see `CalibrationSettings`; `timesteps` and `size` do not apply.
        names: patterns of the modules to measure; by default all linear layers and ungrouped 2D convs.
    """
    settings = settings or CalibrationSettings()
    component = component_of(module)
    dtype, device = _checked(module)
    chosen = [name for name, _ in matrices(module)]
    if names:
        chosen = [ModuleName(name) for name in select(chosen, names)]
    with torch.no_grad():
        count = sum(1 for _ in run())
    if count == 0:
        raise InputError("run yields no sample. It must yield the network's output for each, whenever it is called.")
    held = held_out(count)
    layers = find_layers(module, lambda: next(iter(run()), None), chosen)
    if not layers:
        raise InputError(f"the first sample of run calls none of the {len(chosen)} layers. Does it run this module?")
    origin = replace(settings, size=None).origin(tuned=fingerprint(component).digest, count=count, dtype=dtype)
    sums = Sums.empty(layers, module, origin, device)
    progress.start(count - len(held), "measuring the network")
    outputs = iter(run())
    with _frozen(module):
        for index in range(count):
            if index in held:
                with torch.no_grad():
                    next(outputs, None)
                continue
            label = f"the output for sample {index}"
            sample = Sample(forward=_forward(outputs, index, label), weight=1.0, key=(origin.seed, index), label=label)
            add_sample(module, layers, sample, origin.probes, sums)
            sums.images += 1
            progress.advance()
    statistics = statistics_of(module, layers, sums, origin)
    return replace(statistics, checks=network_checks(Network(module, run), count))


def _checked(module: nn.Module) -> tuple[torch.dtype, torch.device]:
    parameter = next((one for one in module.parameters() if one.is_floating_point()), None)
    if parameter is None:
        raise ConfigError("the module has no parameters.")
    if any(one.training for one in module.modules()):
        raise ConfigError("the module is in training mode: its outputs may be random. Call module.eval() first.")
    _check_range(parameter.dtype)
    return parameter.dtype, parameter.device


@contextmanager
def _frozen(module: nn.Module) -> Generator[None]:
    """Keep gradients from all parameters; those of the measured weights are switched on one sample at a time."""
    trainable = [one for one in module.parameters() if one.requires_grad]
    for one in trainable:
        one.requires_grad_(False)
    try:
        yield
    finally:
        for one in trainable:
            one.requires_grad_(True)


def _forward(outputs: Iterator[Tensor], index: int, label: str) -> Callable[[], Tensor]:

    def forward() -> Tensor:
        output = next(outputs, None)
        if output is None:
            raise InputError(f"run yielded {index} samples, and more in an earlier call. Yield the same ones.")
        if not isinstance(output, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(
                f"run must yield tensors, got {type(output).__name__}. Yield the output to preserve, such as "
                "model(**batch).last_hidden_state."
            )
        if not output.requires_grad or not output.is_floating_point():
            raise InputError(
                f"{label} has no graph to take gradients of. Yield it as the network returns it, without "
                "torch.no_grad and detach."
            )
        return output

    return forward
