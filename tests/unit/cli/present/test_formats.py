"""What a user reads of a conversion."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lbm_lora.cli.present import present
from lbm_lora.naming import ParamName
from lbm_lora.workflows.convert import ConvertResult

File = Callable[[str, int], Path]


@pytest.fixture
def result(file: File) -> ConvertResult:
    path = file("x.safetensors", 123_456)
    return ConvertResult(
        output=path,
        files=(path,),
        nbytes=123_456,
        source="native",
        to="comfyui",
        modules=792,
        biases=372,
        norms=512,
        others=0,
        dropped=(),
        reduced=(),
        relative_error=0.0,
        notes=(),
    )


def test_a_conversion(result: ConvertResult) -> None:
    assert present("convert", result) == (
        "Converted from native to comfyui: 792 lora modules, 372 biases, 512 norm parameters.\n\n"
        "Read by ComfyUI: LoraLoaderModelOnly, on a model that holds an LBM.\n\n"
        "wrote x.safetensors (0.12 MB)"
    )


def test_what_was_left_out_and_approximated_is_counted(result: ConvertResult) -> None:
    names = tuple(ParamName(name) for name in ("conv_in.bias", "norm1.weight", "norm1.bias"))
    lossy = replace(result, dropped=names, reduced=(ParamName("a.weight"),), relative_error=0.0123, notes=("One.",))
    text = present("convert", lossy)
    assert "Left out: 1 bias and 2 norm parameters (conv_in.bias, norm1.weight and 1 more).\n" in text
    assert "Approximated 1 matrix; relative error of all changes 1.23 %.\n\nOne.\n\nRead by" in text
    assert "(conv_in.bias, norm1.weight, norm1.bias)." in present("convert", lossy, verbose=True)


def test_a_folder_is_its_files_and_other_deltas_are_counted(result: ConvertResult, file: File) -> None:
    files = (file("x/adapter_model.safetensors", 2000), file("x/adapter_config.json", 300))
    text = present("convert", replace(result, to="peft", output=Path("x"), files=files, others=1))
    assert "512 norm parameters, 1 other dense delta." in text
    assert text.endswith("wrote x/adapter_model.safetensors (2.0 kB)\nwrote x/adapter_config.json (0.3 kB)")
