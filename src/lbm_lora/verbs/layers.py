"""List the layers of a checkpoint, or those that patterns select: the verb `layers`."""

from dataclasses import dataclass
from typing import Annotated

from lbm_lora.progress import SILENT, Progress
from lbm_lora.verbs.options import Count, FlagName, Model, Pattern, Several
from lbm_lora.verbs.verb import verb


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


def _text(result: LayersResult, _: bool) -> str:
    """Return each layer, and the size of a LoRA of all of them."""
    from lbm_lora.report.table import numbers, table, words
    from lbm_lora.report.wording import dimensions, megabytes, plural

    rows = [(layer.name, layer.kind, dimensions(layer.shape), f"{layer.rank:,}") for layer in result.layers]
    columns = [words("layer"), words("kind"), numbers("shape"), numbers("rank")]
    lines = table(columns, rows, width=10_000)  # names of layers are there to be copied
    return "\n".join(
        [
            *lines,
            "",
            f"{len(result.layers):,} of {plural(result.total, 'layer')}, {result.parameters:,} parameters; a LoRA of "
            f"them: {result.lora_parameters:,} parameters, {megabytes(result.file_bytes)} in bf16",
            f"Training it takes about {result.training_bytes / 1e9:,.2f} GB (the model in bf16 "
            f"{result.model_bytes / 1e9:,.2f} GB, the rest for the trainable parameters and AdamW), plus activations, "
            "which grow with image size and batch_size.",
        ]
    )


@verb(
    "list the layers that a LoRA can hold, or what patterns select",
    examples=(
        "lbm-lora layers --model_path base.safetensors",
        "lbm-lora layers --model_path base.safetensors --patterns attn1 'mid_block.*' --rank 8",
    ),
    text=_text,
)
def layers(
    model: Annotated[Model, FlagName("model_path")],
    patterns: Several[Pattern] = (),
    *,
    rank: Count = 32,
    conv_rank: Count | None = None,
    progress: Progress = SILENT,
) -> tuple[LayersResult, LayersResult]:
    """List the layers that a LoRA can hold, or those that patterns select, and the size of a LoRA of them.

    Args:
        model: A checkpoint, base or tuned; may be user/repo on the hub.
        patterns: List only layers that match one of these: part of a name, a glob, or re:REGEX. Default: every layer.
        rank: Rank of linear layers, for the size.
        conv_rank: Rank of conv layers, for the size. Default: half of the rank.

    Returns:
        The selected layers, and their totals.

    Raises:
        InputError: the checkpoint cannot be read, or a pattern matches nothing.
    """
    from lbm_lora.factorize import FixedRank, has_matrix_view, matrix_shape
    from lbm_lora.hub import open_checkpoint
    from lbm_lora.naming import ParamName, leaf_of, module_of, select

    ranks = FixedRank.of(rank, conv_rank)
    with open_checkpoint(model) as checkpoint:
        component = checkpoint.component()
        modules = {
            module_of(ParamName(name)): spec
            for name, spec in component.specs.items()
            if leaf_of(ParamName(name)) == "weight" and has_matrix_view(spec.shape)
        }
        chosen = select(modules, patterns, prefix=component.prefix) if patterns else set(modules)
        listed = tuple(
            Layer(
                name=name,
                kind="linear" if len(spec.shape) == 2 else f"conv {spec.shape[2]}x{spec.shape[3]}",
                shape=spec.shape,
                rank=(stored := ranks.rank_of(spec.shape)),
                parameters=spec.numel,
                lora_parameters=stored * sum(matrix_shape(spec.shape)),
            )
            for name, spec in modules.items()
            if name in chosen
        )
        result = LayersResult(
            prefix=component.prefix,
            layers=listed,
            total=len(modules),
            parameters=sum(layer.parameters for layer in listed),
            lora_parameters=sum(layer.lora_parameters for layer in listed),
            model_bytes=sum(2 * spec.numel for spec in checkpoint.specs.values()),
        )
    return result, result
