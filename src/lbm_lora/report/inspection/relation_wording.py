"""How two files relate, as pairs of a label and a text: what the screen and the page both say."""

from lbm_lora.report.inspection.relations import Difference, Fit
from lbm_lora.report.inspection.wording import Facts, some
from lbm_lora.report.wording import percent


def difference_lines(difference: Difference) -> Facts:
    """How two files differ, in total."""
    return [
        ("result", "the same bits everywhere" if difference.is_same else _counted(difference)),
        ("difference", f"{percent(difference.relative)} of the first file's norm"),
        ("cosine", f"{difference.cosine:.6f}"),
    ]


def fit_lines(fit: Fit) -> Facts:
    """Whether a LoRA fits a checkpoint."""
    bases = {
        "base": "this is the checkpoint that the LoRA was made from",
        "tuned": "this is the tuned checkpoint that the LoRA was extracted from, not its base",
        "other": f"the LoRA was made from another base; different here: {some(fit.differing, 'tensor')}",
        "unknown": "the LoRA does not say which base it was made from",
    }
    lines = [
        ("fits", "yes" if fit.fits else "no"),
        ("names", f"{fit.matched:,} match by name and shape"),
        ("unmatched", some(fit.unmatched, "name")),
        ("shapes", some(fit.mismatched, "parameter") + " of another shape" if fit.mismatched else ""),
        ("base", bases[fit.base]),
    ]
    return [(label, text) for label, text in lines if text]


def _counted(difference: Difference) -> str:
    words = {"same": "with the same bits", "different": "different", "other shape": "of another shape"}
    words |= {"only first": "only in the first", "only second": "only in the second"}
    return ", ".join(f"{count:,} {words[match]}" for match, count in difference.counts.items())
