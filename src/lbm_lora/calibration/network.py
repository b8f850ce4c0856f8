"""Collect the statistics of any network: a module, and a callable that runs it over samples."""

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from lbm_lora.calibration.layers import find_layers, matrices, vectors
from lbm_lora.calibration.samples import Sample, add_sample, statistics_of
from lbm_lora.calibration.statistics import CalibrationSettings, Origin, Statistics
from lbm_lora.calibration.sums import Sums
from lbm_lora.checkpoint import dtype_name, fingerprint
from lbm_lora.errors import ConfigError, InputError
from lbm_lora.fidelity.checks import held_out
from lbm_lora.fidelity.network import Network, Run, component_of
from lbm_lora.fidelity.network_trial import network_checks
from lbm_lora.naming import ModuleName, select
from lbm_lora.progress import SILENT, Progress


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
        progress: counts samples.

    Raises:
        ConfigError: the module is in training mode or in fp16, or is wrapped.
        PatternError: a pattern matches nothing.
        InputError: `run` yields nothing, or something else than finite floating point tensors with a graph.
    """
    settings = settings or CalibrationSettings()
    component = component_of(module)
    dtype, device = _checked(module)
    chosen = _chosen(module, names)
    count = _count(run)
    held = held_out(count)
    layers = find_layers(module, lambda: next(iter(run()), None), chosen)
    if not layers:
        raise InputError(f"the first sample of run calls none of the {len(chosen)} layers. Does it run this module?")
    origin = Origin(
        tuned=fingerprint(component).digest,
        images="",
        count=count,
        schedule=(),
        probes=settings.probes_for(count),
        size=None,
        seed=settings.seed,
        dense_up_to=settings.dense_up_to,
        sketch_rank=settings.sketch_rank,
        conv_dense_up_to=settings.conv_dense_up_to,
        dtype=dtype_name(dtype),
    )
    sums = Sums.empty(
        layers,
        {name: vector.numel() for name, vector in vectors(module)},
        dense_up_to=origin.dense_up_to,
        sketch_rank=origin.sketch_rank,
        conv_dense_up_to=origin.conv_dense_up_to,
        seed=origin.seed,
        device=device,
    )
    progress.start(count - len(held), "measuring the network")
    outputs = iter(run())
    with _frozen(module):
        for index in range(count):
            if index in held:
                _skip(outputs)
                continue
            sample = Sample(forward=_forward(outputs, index), weight=1.0, key=(origin.seed, index), label=_label(index))
            add_sample(module, layers, sample, origin.probes, sums)
            sums.images += 1
            progress.advance()
    statistics = statistics_of(module, layers, sums, origin)
    return replace(statistics, checks=network_checks(Network(module, run), count))


def _checked(module: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Return dtype and device of a network that can be measured."""
    parameter = next((one for one in module.parameters() if one.is_floating_point()), None)
    if parameter is None:
        raise ConfigError("the module has no parameters.")
    if any(one.training for one in module.modules()):
        raise ConfigError("the module is in training mode: its outputs may be random. Call module.eval() first.")
    if parameter.dtype == torch.float16:
        raise ConfigError("calibration gradients exceed the range of fp16. Use bf16 or float.")
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


def _chosen(module: nn.Module, names: Sequence[str]) -> Collection[ModuleName]:
    found = [name for name, _ in matrices(module)]
    return {ModuleName(name) for name in select(found, names)} if names else set(found)


@torch.no_grad()
def _skip(outputs: Iterator[Tensor]) -> None:
    next(outputs, None)


@torch.no_grad()
def _count(run: Run) -> int:
    """Return the number of samples.

    Raises:
        InputError: there are none.
    """
    count = sum(1 for _ in run())
    if count == 0:
        raise InputError("run yields no sample. It must yield the network's output for each, whenever it is called.")
    return count


def _forward(outputs: Iterator[Tensor], index: int) -> Callable[[], Tensor]:
    """Return what runs the next sample, and checks its output."""

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
                f"{_label(index)} has no graph to take gradients of. Yield it as the network returns it, without "
                "torch.no_grad and detach."
            )
        return output

    return forward


def _label(index: int) -> str:
    return f"the output for sample {index}"
