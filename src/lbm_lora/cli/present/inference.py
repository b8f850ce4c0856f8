"""Result of demo."""

from typing import TYPE_CHECKING

from lbm_lora.cli.present import compress

if TYPE_CHECKING:
    from lbm_lora.workflows.demo import DemoResult


def demo(result: "DemoResult", verbose: bool) -> str:
    """Return the result of compress, and the image that was relit with it."""
    (relit,) = result.infer.outputs
    return (
        f"{compress.compress(result.compress, verbose)}\nRelit    {relit.output}, and {relit.comparison} side by side."
    )
