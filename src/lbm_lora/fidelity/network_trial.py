"""Run a LoRA in any network before it is written: at held-out samples, and at samples with other content."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lbm_lora.adapter import StoredDelta
from lbm_lora.checkpoint import Component
from lbm_lora.errors import InputError
from lbm_lora.fidelity.checks import MOST_HELD, Check, CheckKind, held_out, trial_errors
from lbm_lora.fidelity.network import Network, put_deltas
from lbm_lora.fidelity.output_errors import relative_error
from lbm_lora.fidelity.points import generator
from lbm_lora.progress import Progress
from lbm_lora.ranks import TrialErrors, TrialImages

_KINDS: tuple[CheckKind, ...] = ("held", "content")
_SHIFTED = 8  # samples that are also run with other content


class NetworkTrial:
    """Network that starts as the tuned one, then takes base + deltas: a `Trial` of `lbm_lora.ranks`.

    The caller puts the module's weights back; see `kept_weights`.
    """

    def __init__(self, network: Network, base: Component, checks: Sequence[Check], progress: Progress) -> None:
        self._network, self._base, self._progress = network, base, progress
        self._checks = list(checks)

    @property
    def has_points(self) -> bool:
        """Whether there are samples to measure an error at."""
        return any(check.kind == "held" for check in self._checks)

    def take(self, deltas: Iterable[StoredDelta] = ()) -> None:
        """Set the network to the base plus these deltas."""
        put_deltas(self._network.module, self._base, deltas)

    def error(self) -> TrialErrors | None:
        """Return the relative errors of the output; None if there are no samples."""
        self._progress.start(len(self._checks), "checking the prediction")
        errors: list[float] = []
        for kind in _KINDS:
            wanted = [check for check in self._checks if check.kind == kind]
            found = dict(check_outputs(self._network, kind, {check.sample for check in wanted}))
            if len(found) < len(wanted):
                raise InputError(
                    f"run yields fewer samples than in the calibration: {len(found)} of {len(wanted)} that were held "
                    "out. Give the one that the network was calibrated with."
                )
            for check in wanted:
                output = found[check.sample]
                if output.shape != check.wanted.shape:
                    raise InputError(
                        f"run yields an output of shape {tuple(output.shape)} for sample {check.sample}, and "
                        f"{tuple(check.wanted.shape)} in the calibration. Give the one that the network was "
                        "calibrated with."
                    )
                errors.append(relative_error(output, check.wanted))
            self._progress.advance(len(wanted))
        return trial_errors([check for kind in _KINDS for check in self._checks if check.kind == kind], errors)

    def images(self) -> TrialImages | None:
        """There are none."""
        return None


def network_checks(network: Network, count: int) -> tuple[Check, ...]:
    """Return held-out samples, and samples with other content, with the tuned network's outputs.

    Of fewer than four samples none is held out, and none is checked.
    """
    held = held_out(count)
    if not held:
        return ()
    chosen: dict[CheckKind, set[int]] = {
        "held": {held[index * len(held) // MOST_HELD] for index in range(MOST_HELD)},
        "content": {index * count // _SHIFTED for index in range(_SHIFTED)},
    }
    return tuple(
        Check(kind=kind, wanted=output, sample=sample)
        for kind, samples in chosen.items()
        for sample, output in check_outputs(network, kind, samples)
        if torch.isfinite(output).all()
    )


@torch.no_grad()
def check_outputs(network: Network, kind: str, samples: set[int]) -> Iterator[tuple[int, Tensor]]:
    """Run a network, and yield index and output, in fp32 on the CPU, of some of its samples."""
    if not samples:
        return
    last = max(samples)
    index = 0
    with _shifted_inputs(network.module, lambda: index, when=kind == "content"):
        for output in network.run():
            if index in samples:
                yield index, output.detach().float().cpu()
            if index == last:
                break
            index += 1


@contextmanager
def _shifted_inputs(module: nn.Module, sample: Callable[[], int], *, when: bool) -> Generator[None]:
    """Replace what the module is called with by inputs unlike it, which depend only on it and on the sample.

    Floating point values become noise of the same mean and deviation. Integers are drawn evenly: from all words of the
    largest embedding, else between the lowest and the highest of the tensor. Masks of zeros and ones stay.
    """
    words = max((one.num_embeddings for one in module.modules() if isinstance(one, nn.Embedding)), default=0)

    def shift(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        draw = generator(sample(), "shifted")
        positional = tuple(_shifted(value, draw, words) for value in args)
        return positional, {name: _shifted(value, draw, words) for name, value in kwargs.items()}

    handle = module.register_forward_pre_hook(shift, with_kwargs=True) if when else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def _shifted(value: Any, draw: torch.Generator, words: int) -> Any:
    if not isinstance(value, Tensor) or value.numel() < 2 or value.dtype == torch.bool:
        return value
    low, high = value.min().item(), value.max().item()
    if {low, high} <= {0, 1}:
        return value
    if value.is_floating_point():
        noise = torch.randn(value.shape, generator=draw).to(value.device)
        return (value.float().mean() + value.float().std() * noise).to(value)
    low, high = (0, words) if words else (int(low), int(high) + 1)
    return torch.randint(low, high, tuple(value.shape), generator=draw).to(value)
