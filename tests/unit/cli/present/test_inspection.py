"""What a user reads of `inspect`: the screen, options as flags, and the written page."""

from collections.abc import Callable
from pathlib import Path

from lbm_lora.cli.present import present
from lbm_lora.errors import AdapterError, Option
from lbm_lora.report.inspection import FileFacts, Inspection

File = Callable[[str, int], Path]


def test_a_refused_file_with_its_remedy_as_a_flag(file: File) -> None:
    facts = FileFacts(
        path=Path("in/dora.safetensors"),
        kind="a DoRA",
        files=("dora.safetensors",),
        nbytes=1234,
        header_nbytes=200,
        tensors=3,
        dtypes={"fp16": 3},
        first_keys=("a.lora_A.weight", "a.lora_B.weight"),
        header={"ss_network_dim": "8"},
        refusal=AdapterError("Its magnitudes need the base. Give ", Option("base_model_path"), "."),
    )
    text = present("inspect", Inspection(file=facts, written=(file("r/inspect.html", 1500),)))
    assert text == TEXT


TEXT = """\
dora.safetensors: a DoRA, 1.2 kB
  tensors        3: 3 fp16
  first keys     a.lora_A.weight, a.lora_B.weight
  not read       Its magnitudes need the base. Give --base_model_path.

header
  ss_network_dim  8

wrote r/inspect.html (1.5 kB)"""
