"""The memory that a command would need: the measured values of docs/memory.md, scaled to the size of its model.

Commands that stream grow with the largest tensor, those that run or train networks with the model. Memory is anonymous
memory; pages of mapped files come on top where there is room.
"""

from dataclasses import dataclass
from typing import Any, Literal

from lbm_lora.checkpoint import Checkpoint, dtype_of
from lbm_lora.configs.infer import InferConfig
from lbm_lora.configs.infer_shards import InferShardsConfig
from lbm_lora.errors import LbmLoraError, Option
from lbm_lora.machine import Message
from lbm_lora.model.resolve import resolve_config
from lbm_lora.workflows.needs.inputs import Inputs, parameters_of

LBM_PARAMETERS = 2_510_000_000
"""Parameters of the measured model, VAE included."""
LBM_LARGEST = 29_491_200
"""Parameters of its largest tensor, 1280 x 2560 x 3 x 3."""
TORCH, NETWORKS = 180_000_000, 400_000_000
"""Bytes of a process that has imported torch, or the network classes too."""

_IMAGE = 2_700_000_000  # bytes in bf16 beyond the weights at 1024 x 1024: 7.7 GB in the paper, weights 5.0
_PIXELS = 1024**2
_OURS = 1024  # size of the published model

Rule = Literal[
    "base", "extract", "extract full rank", "validate", "fuse", "calibrate", "extract calibrated", "train", "refine",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A measured command.

    Attributes:
        nbytes: memory at full size.
        streams: whether it grows with the largest tensor, else with the model.
    """

    nbytes: int
    streams: bool = False


MEASURED: dict[Rule, Measured] = {
    "base": Measured(nbytes=790_000_000, streams=True),
    "extract": Measured(nbytes=630_000_000, streams=True),
    "extract full rank": Measured(nbytes=850_000_000, streams=True),
    "validate": Measured(nbytes=430_000_000, streams=True),
    "fuse": Measured(nbytes=440_000_000, streams=True),
    "calibrate": Measured(nbytes=3_110_000_000),
    "extract calibrated": Measured(nbytes=3_180_000_000),
    "train": Measured(nbytes=3_790_000_000),
    "refine": Measured(nbytes=2_710_000_000),
}
"""The rows of docs/memory.md; a test compares them."""

_LESS: dict[Rule | Literal["infer"], Message] = {
    "calibrate": Message(Option("sketch_rank"), " 64 or 0 needs less."),
    "extract calibrated": Message(Option("check", is_off=True), " needs less, and predicts errors less well."),
    "train": Message("batch_size 1 with accumulate, gradient_checkpointing and fewer layers need less."),
    "refine": Message(Option("torch_dtype"), " bf16, ", Option("batch_size"), " 1 or a smaller ", Option("size"), "."),
    "infer": Message(
        Option("torch_dtype"), " bf16, a smaller ", Option("size"), " or ", Option("vae_tiling"), " on needs less."
    ),
}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Estimated memory of a command.

    Attributes:
        nbytes: None if there is no rule.
        basis: where the number comes from.
        less: what needs less.
        streams: whether it streams tensors, in the memory of the CPU whatever the device.
    """

    nbytes: int | None
    basis: str
    less: Message
    streams: bool = False


def memory_of(command: str, config: Any, inputs: Inputs) -> Memory:
    """Estimate the memory of a command.

    Args:
        command: name of its module in `lbm_lora.workflows`.
    """
    if isinstance(config, InferConfig | InferShardsConfig):
        return _inference(config, inputs)
    rule = rule_of(command, config)
    if rule is None:
        return Memory(nbytes=None, basis="no measured rule for this command", less=Message())
    model, largest = parameters_of(inputs.checkpoints)
    measured = MEASURED[rule]
    if measured.streams:
        nbytes = TORCH + (measured.nbytes - TORCH) * (largest or LBM_LARGEST) / LBM_LARGEST
        basis = "measured at full size, scaled by the largest tensor"
    else:
        nbytes = NETWORKS + (measured.nbytes - NETWORKS) * (model or LBM_PARAMETERS) / LBM_PARAMETERS
        basis = "at least; measured at 256 x 256 with one image, scaled by the parameters"
    if not model:
        basis = "for a model of full size"
    return Memory(nbytes=round(nbytes), basis=basis, less=_LESS.get(rule, Message()), streams=measured.streams)


def rule_of(command: str, config: Any) -> Rule | None:
    """The measured command that stands for this one; None if none does."""
    if command == "extract":
        if config.statistics is not None:
            return "extract calibrated"
        return "extract full rank" if config.rank >= 1280 else "extract"
    if command == "compress":
        return "extract calibrated"
    if command == "validate":
        return None if config.images is not None else "validate"
    found: dict[str, Rule] = {one: one for one in ("base", "fuse", "calibrate", "train", "refine")}
    return found.get(command)


def _inference(config: InferConfig | InferShardsConfig, inputs: Inputs) -> Memory:
    """Weights that are no views of the file, and one image."""
    base = inputs.checkpoints.get("base_model_path")
    width = dtype_of(config.torch_dtype).itemsize
    weights = LBM_PARAMETERS * width if base is None else _copied_weights(base, config)
    side = config.size or _own_size(base, config)
    pixels = min(side**2, _PIXELS) if config.vae_tiling != "off" else side**2
    nbytes = NETWORKS + weights + _IMAGE * (pixels / _PIXELS) * (width / 2) * _narrowness(base)
    basis = f"estimated, not measured, at {side} x {side}"
    return Memory(nbytes=round(nbytes), basis=basis, less=_LESS["infer"])


def _own_size(base: Checkpoint | None, config: InferConfig | InferShardsConfig) -> int:
    """Square root of the model's own pixel budget; that of the published model where nothing says it."""
    try:
        lbm = None if base is None else resolve_config(base, config_path=config.config_path)
    except LbmLoraError:
        lbm = None  # has its own check
    if lbm is None or lbm.unet is None or lbm.vae is None:
        return _OURS
    sample = lbm.unet.get("sample_size")
    return sample * 2 ** (len(lbm.vae["block_out_channels"]) - 1) if isinstance(sample, int) else _OURS


def _copied_weights(base: Checkpoint, config: InferConfig | InferShardsConfig) -> int:
    """Bytes of weights that are computed: converted ones, and those that a LoRA is fused into."""
    wanted = dtype_of(config.torch_dtype)
    component = base.component()
    fused = config.mode == "fused" and bool(config.lora_path)
    of_denoiser = {component.prefix + name for name in component.specs}
    return sum(
        spec.numel * wanted.itemsize
        for key, spec in base.specs.items()
        if spec.dtype != wanted or (fused and key in of_denoiser)
    )


def _narrowness(base: Checkpoint | None) -> float:
    """Width of the decoder at full resolution, over that of SDXL's."""
    spec = None if base is None else base.specs.get("vae.vae_model.decoder.conv_norm_out.weight")
    return 1.0 if spec is None else spec.numel / 128
