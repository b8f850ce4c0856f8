"""The files behind the variants of a comparison: what decides which of them belong on one curve of size and error."""

from collections.abc import Mapping
from fractions import Fraction

from lbm_lora.adapter import Adapter
from lbm_lora.adapter.metadata import parsed
from lbm_lora.fidelity.outputs import LoraFile
from lbm_lora.files import written_bytes

_SPLITS = {
    "max_size": "ranks chosen across layers",
    "max_error": "ranks chosen across layers",
    "max_output_error": "ranks chosen across layers",
    "min_psnr": "ranks chosen across layers",
    "keep_energy": "same energy in each layer",
    "max_module_error": "same error in each layer",
}
"""Rank policy -> how it splits ranks between layers. The first four follow one rule, each to another limit."""


def lora_files(adapters: Mapping[str, Adapter]) -> tuple[LoraFile, ...]:
    """One entry for each variant whose adapter was read from a file, as the file describes itself."""
    files: list[LoraFile] = []
    for variant, adapter in adapters.items():
        if adapter.path is None:
            continue
        settings = parsed(adapter.metadata.facts, "lbm_lora_settings")
        split, ranks = _ranks(settings)
        files.append(
            LoraFile(
                variant=variant,
                file=adapter.path.name,
                nbytes=written_bytes(adapter.path),
                method=str(settings.get("method") or settings.get("rank_policy") or "not said"),
                dtype=str(settings.get("dtype") or ""),
                split=split,
                ranks=ranks,
            )
        )
    return tuple(files)


def _ranks(settings: Mapping[str, object]) -> tuple[str, str]:
    """How ranks are split between layers, and the ranks where they are fixed; empty where the file does not say."""
    rank, conv_rank = settings.get("rank"), settings.get("conv_rank")
    if not isinstance(rank, int) or not isinstance(conv_rank, int) or rank < 1:
        return _SPLITS.get(str(settings.get("rank_policy")), ""), ""
    if rank == conv_rank:
        return "equal ranks", f"rank {rank}"
    return f"conv rank {Fraction(conv_rank, rank)} of rank", f"rank {rank}, conv {conv_rank}"
