"""Run any network with other weights, and measure how far its outputs move from the tuned network's.

A network is a module and a callable that runs it over samples. Its weights are replaced while something is measured, by
new tensors: those that it had are not written to, and are put back.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from lbm_lora.adapter import Adapter, LoraModule, StoredDelta
from lbm_lora.checkpoint import Component, open_checkpoint
from lbm_lora.errors import ConfigError, InputError, plural
from lbm_lora.fidelity.output_errors import relative_error, typical_error
from lbm_lora.model.streamed_weights import StreamedWeights
from lbm_lora.naming import ParamName
from lbm_lora.progress import SILENT, Progress

Run = Callable[[], Iterable[Tensor]]
"""Runs a network over samples, always the same ones in the same order, and yields its output for each."""


@dataclass(frozen=True, eq=False)
class Network:
    """A module, and a callable that runs it."""

    module: nn.Module
    run: Run


@dataclass(frozen=True, kw_only=True)
class NetworkErrors:
    """Relative errors of a network's outputs, ||output - tuned|| / ||tuned||, one for each sample."""

    base: tuple[float, ...]
    lora: tuple[float, ...]

    @property
    def typical_base(self) -> float:
        """Geometric mean of the base's errors."""
        return typical_error(self.base, [1.0] * len(self.base))

    @property
    def typical(self) -> float:
        """Geometric mean of the LoRA's errors."""
        return typical_error(self.lora, [1.0] * len(self.lora))

    @property
    def worst(self) -> float:
        """Largest error of the LoRA."""
        return max(self.lora)


def component_of(module: nn.Module) -> Component:
    """Return the weights of a module as a component without prefix."""
    state = module.state_dict()
    component = open_checkpoint(state, label=type(module).__name__).component()
    if set(component) != set(state):
        raise ConfigError(
            f"{type(module).__name__} is a wrapper: its weights are called {next(iter(state))} and so on. Give the "
            "module inside it."
        )
    return component


@contextmanager
def kept_weights(module: nn.Module) -> Generator[None]:
    """Put the weights back at the end that the module had at the beginning."""
    before = {name: value.data for name, value in _values(module).items()}
    try:
        yield
    finally:
        for name, value in _values(module).items():
            value.data = before[name]


def put_deltas(
    module: nn.Module, base: Component, deltas: Iterable[StoredDelta] = (), *, streamed: StreamedWeights | None = None
) -> None:
    """Set the weights of a module to the base plus deltas. What the base lacks, or has in another shape, stays.

    Args:
        streamed: the weights of the module, if they are in memory only while it runs.
    """
    values = {} if streamed else _values(module)
    shapes = streamed.shapes if streamed else {name: tuple(value.shape) for name, value in values.items()}
    left = {name for name, shape in shapes.items() if name in base and base.specs[name].shape == shape}
    for name, delta in chain(deltas, ((name, None) for name in list(left))):
        if name not in left:
            continue
        left.remove(name)
        if streamed and isinstance(delta, LoraModule):
            streamed.put(name, partial(_changed, base, name, None), delta)
        elif streamed:
            streamed.put(name, partial(_changed, base, name, delta))
        else:
            value = values[name]
            value.data = _changed(base, name, delta).to(value.device, value.dtype)


@torch.no_grad()
def outputs_of(run: Run) -> Iterator[Tensor]:
    """Yield the outputs for all samples, in fp32 on the CPU."""
    for output in run():
        yield output.detach().float().cpu()


def network_errors(
    module: nn.Module, run: Run, base: Component, adapter: Adapter, progress: Progress = SILENT
) -> NetworkErrors:
    """Compare base and base + LoRA with the tuned network on every sample. Its outputs are kept in memory meanwhile."""
    progress.start(3, "comparing outputs")
    wanted = list(outputs_of(run))
    progress.advance()
    if not wanted:
        raise InputError("run yields no sample. It must yield the network's output for each, whenever it is called.")
    errors: list[tuple[float, ...]] = []
    with kept_weights(module):
        for deltas in ((), adapter.stored()):
            put_deltas(module, base, deltas)
            try:
                pairs = zip(outputs_of(run), wanted, strict=True)
                errors.append(tuple(relative_error(*pair) for pair in pairs))
            except ValueError:
                count = plural(len(wanted), "sample")
                raise InputError(f"run yielded {count} in one call and a different number in another.") from None
            progress.advance()
    return NetworkErrors(base=errors[0], lora=errors[1])


def _values(module: nn.Module) -> dict[ParamName, Tensor]:
    """Return parameters and buffers of floating point by name; a shared one once, by its first name."""
    found: dict[ParamName, Tensor] = {}
    seen: set[int] = set()
    for name, value in module.state_dict(keep_vars=True).items():
        if value.is_floating_point() and id(value) not in seen:
            seen.add(id(value))
            found[ParamName(name)] = value
    return found


def _changed(base: Component, name: ParamName, delta: LoraModule | Tensor | None) -> Tensor:
    """Return base + delta in fp32: new, or a view of the file, which must not be written to."""
    stored = base.read(name)
    values = stored.float()
    if delta is None:
        return values
    added = delta.delta() if isinstance(delta, LoraModule) else delta.float()
    return values + added if values is stored else values.add_(added)
