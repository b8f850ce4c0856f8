"""What a user reads of a merge."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lbm_lora.cli.present import present
from lbm_lora.fidelity.fitted_scales import FittedScales
from lbm_lora.fidelity.output_errors import OutputErrors
from lbm_lora.workflows.merge import MergedLora, MergeResult


def test_a_merged_lora(file: Callable[[str, int], Path]) -> None:
    result = MergeResult(
        adapter=file("m.safetensors", 2_500),
        nbytes=2_500,
        loras=(
            MergedLora(path=Path("in/a.safetensors"), lora_scale=1.0, modules=792, dense=884),
            MergedLora(path=Path("b.safetensors"), lora_scale="0.5,attn1=0", modules=1, dense=0),
        ),
        method="sum",
        modules=790,
        dense=886,
        left_out=0,
        ranks=(4, 12),
        relative_error=0.0021,
        chain=(),
        fit=None,
        seconds=3.25,
    )
    assert present("merge", result) == (
        "Merged 2 LoRAs\n"
        "  LoRA                 scale  lora modules  dense deltas\n"
        "  a.safetensors          1.0           792           884\n"
        "  b.safetensors  0.5,attn1=0             1             0\n"
        "\n"
        "Their sum: 790 lora modules of rank 4 to 12, 886 dense deltas; 3.2 s.\n"
        "Relative error of what is stored: 0.21 %.\n"
        "\n"
        "wrote m.safetensors (2.5 kB)"
    )
    errors = (OutputErrors(typical=0.5, worst=0.8), OutputErrors(typical=0.1, worst=0.2))
    fit = FittedScales(factors=(1.0, 0.5), before=errors[0], after=errors[1], images=4)
    other = replace(result, method="ties", ranks=(8, 8), left_out=3, chain=("a.safetensors", "b.safetensors"), fit=fit)
    text = present("merge", other)
    assert "Merged by ties: 790 lora modules of rank 8, 886 dense deltas" in text
    assert "3 deltas left out: zero at these scales, or not worth the bytes." in text
    assert "Scales fitted on 4 images. Error of the denoiser's output: typical 50.0 % -> 10.0 %" in text
    assert "It is for the base of a.safetensors: b.safetensors was made on the tuned model" in text
