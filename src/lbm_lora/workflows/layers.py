"""List the layers of a checkpoint, or those that patterns select: the verb `layers`."""

from collections.abc import Iterable
from dataclasses import dataclass

from lbm_lora.adapter import Adapter
from lbm_lora.checkpoint import Checkpoint, Component, TensorSpec, open_checkpoint
from lbm_lora.configs.layers import LayersConfig
from lbm_lora.factorize import FixedRank, has_matrix_view, matrix_shape
from lbm_lora.hub import localized
from lbm_lora.naming import ModuleName, ParamName, leaf_of, module_of, select, weight_of
from lbm_lora.progress import SILENT, Progress


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer with a weight matrix."""

    name: str
    kind: str
    """linear, conv 1x1, conv 3x3, ..."""
    shape: tuple[int, ...]
    rank: int
    """Rank that a LoRA would be stored with."""
    parameters: int
    lora_parameters: int


@dataclass(frozen=True, kw_only=True)
class LayersResult:
    """Selected layers and their totals."""

    prefix: str
    layers: tuple[Layer, ...]
    total: int
    """Layers of the checkpoint, selected or not."""
    parameters: int
    lora_parameters: int
    model_bytes: int
    """Bytes of all tensors of the checkpoint in bf16."""

    @property
    def file_bytes(self) -> int:
        """Bytes of a LoRA in bf16, as extraction writes it; training writes fp32, twice as much."""
        return 2 * self.lora_parameters

    @property
    def training_bytes(self) -> int:
        """Memory for training such a LoRA without activations: the model in bf16, and for each trainable
        parameter its value, its gradient and Adam's two averages in fp32."""
        return self.model_bytes + 4 * 4 * self.lora_parameters


def run(config: LayersConfig, progress: Progress = SILENT) -> LayersResult:
    """List the layers of a checkpoint that have a weight matrix, or those that patterns select.

    Raises:
        InputError: the checkpoint cannot be read, or a pattern matches nothing.
    """
    with open_checkpoint(localized(config, progress).model_path) as checkpoint:
        return listed(config, checkpoint)


run_layers = run
"""Its name on the public page."""


def listed(config: LayersConfig, checkpoint: Checkpoint) -> LayersResult:
    """Return the layers of an open checkpoint."""
    ranks = FixedRank.of(config.rank, config.conv_rank)
    component = checkpoint.component()
    modules = dict(_weights(component))
    chosen = select(modules, config.patterns, prefix=component.prefix) if config.patterns else set(modules)
    layers = tuple(_layer(name, spec, ranks) for name, spec in modules.items() if name in chosen)
    return LayersResult(
        prefix=component.prefix,
        layers=layers,
        total=len(modules),
        parameters=sum(layer.parameters for layer in layers),
        lora_parameters=sum(layer.lora_parameters for layer in layers),
        model_bytes=sum(2 * spec.numel for spec in checkpoint.specs.values()),
    )


def layer_lines(component: Component, adapter: Adapter) -> list[str]:
    """Return a line for each layer with a weight matrix, sorted, with the component's prefix.

    A line is the name alone if the adapter has a lora module for it, which training can use; else a comment.
    """
    return [_line(component.prefix, name, adapter) for name in sorted(name for name, _ in _weights(component))]


def _line(prefix: str, name: ModuleName, adapter: Adapter) -> str:
    if name in adapter.modules:
        return prefix + name
    return f"# {prefix}{name}: {'dense' if weight_of(name) in adapter.dense else 'not'} in this LoRA"


def _weights(component: Component) -> Iterable[tuple[ModuleName, TensorSpec]]:
    for name, spec in component.specs.items():
        if leaf_of(ParamName(name)) == "weight" and has_matrix_view(spec.shape):
            yield module_of(name), spec


def _layer(name: ModuleName, spec: TensorSpec, ranks: FixedRank) -> Layer:
    kind = "linear" if len(spec.shape) == 2 else f"conv {spec.shape[2]}x{spec.shape[3]}"
    rank = ranks.rank_of(spec.shape)
    return Layer(
        name=name,
        kind=kind,
        shape=spec.shape,
        rank=rank,
        parameters=spec.numel,
        lora_parameters=rank * sum(matrix_shape(spec.shape)),
    )
