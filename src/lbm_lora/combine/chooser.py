"""The choice of ranks for products: their spectra, and the chooser that a rule asks."""

import json
from collections.abc import Sequence

from lbm_lora.adapter import METADATA_ROOM, AdapterMetadata
from lbm_lora.combine.shrink import Shrinking
from lbm_lora.factorize import Measure
from lbm_lora.progress import SILENT, Progress
from lbm_lora.ranks import Chooser, OutputNorm, RankAllocator, predictor_of


def chooser_of(
    shrinking: Shrinking,
    headers: Sequence[AdapterMetadata],
    norm: OutputNorm | None = None,
    progress: Progress = SILENT,
    *,
    can_leave_out: bool = True,
) -> Chooser:
    """Survey the products, and return a chooser of their ranks.

    Args:
        headers: metadata of each file, as far as it is known.
        norm: output norm, if errors are weighted by it; that of `shrinking`.
        can_leave_out: see `RankAllocator`.
    """
    spectra, others = shrinking.survey(progress)
    allocator = RankAllocator(
        spectra,
        shrinking.dtype,
        prefix=shrinking.prefix,
        dense=shrinking.dense(),
        overhead=max(len(json.dumps(header.to_header())) for header in headers) + METADATA_ROOM,
        others=Measure() if norm else others,
        can_leave_out=can_leave_out,
    )
    return Chooser(allocator, predictor_of(allocator, norm), shrinking.deltas_of)
