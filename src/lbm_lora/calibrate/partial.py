"""The sums of an unfinished run in a file, so that a run that was stopped goes on where it was."""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from lbm_lora.calibrate.statistics import Origin
from lbm_lora.calibrate.sums import Sums
from lbm_lora.checkpoint import SafetensorsWriter, TensorSpec, open_checkpoint

_ORIGIN_KEY = "lbm_lora_partial_statistics"


class PartialFile:
    """A file of sums beside the output; it is removed when the output is there.

    Args:
        output: where the statistics are to go; `S.safetensors` has its sums in `S.partial.safetensors`.
    """

    def __init__(self, output: Path) -> None:
        self.path = output.with_name(f"{output.stem}.partial.safetensors")

    def load(self, origin: Origin, device: torch.device) -> Sums | None:
        """The sums of a run of the same origin; nothing where there is no file, or one of another run.

        Raises:
            CheckpointError: the file is damaged.
        """
        if not self.path.exists():
            return None
        with open_checkpoint(self.path) as file:
            if file.metadata.get(_ORIGIN_KEY) != _identity(origin):
                return None
            return Sums.from_state({key: file.read(key).to(device, copy=True) for key in file.specs})

    def save(self, sums: Sums, origin: Origin) -> None:
        """Write the sums, atomically."""
        state = sums.state()
        specs = {key: TensorSpec.of(tensor) for key, tensor in state.items()}
        with SafetensorsWriter(self.path, specs, metadata={_ORIGIN_KEY: _identity(origin)}) as writer:
            for key, tensor in state.items():
                writer.write(key, tensor)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _identity(origin: Origin) -> str:
    return json.dumps(asdict(origin))
