"""Write the tables of docs/formats.md: what each format holds, tried out, and what tests/interop runs.

    python tools/write_formats_page.py          # after a change of a format or of tests/foreign.py; a test says when

The first table is made by writing a small LoRA with each feature in each format and reading it back: nothing in it is
written by hand. The others list the cases of tests/foreign.py.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from foreign import LYCORIS_FILES, PEFT_FILES, READINGS, Reading, Writing  # noqa: E402
from lbm_lora.adapter import Adapter, LoraModule, Wishes, load_adapter, save_adapter  # noqa: E402
from lbm_lora.checkpoint import Component, open_checkpoint  # noqa: E402
from lbm_lora.choices import FormatName  # noqa: E402
from lbm_lora.errors import AdapterError  # noqa: E402
from lbm_lora.factorize import down_shape, up_shape  # noqa: E402
from lbm_lora.naming import ModuleName, ParamName, weight_of  # noqa: E402

PAGE = ROOT / "docs/formats.md"
FORMATS: tuple[FormatName, ...] = get_args(FormatName)
_TO_Q, _CONV = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.resnets.0.conv1"
_SHAPES = {
    _TO_Q: (8, 8),
    _CONV: (8, 8, 3, 3),
    "up_blocks.0.resnets.0.conv_shortcut": (8, 16, 1, 1),
    "conv_in": (8, 4, 3, 3),
    "conv_out": (4, 8, 3, 3),
    "time_embedding.linear_1": (16, 8),
}
_NORM = "mid_block.resnets.0.norm1"
_REPLACING = (Wishes(), Wishes(biases="lora_bias"), Wishes(biases="replace", norms="replace"))


def _module(name: str, rank: int = 2, alpha: float | None = None) -> dict[ModuleName, LoraModule]:
    shape, random = _SHAPES[name], torch.Generator().manual_seed(0)
    down = torch.randn(down_shape(shape, rank), generator=random)
    up = torch.randn(up_shape(shape, rank), generator=random)
    return {ModuleName(name): LoraModule(ModuleName(name), down, up, float(rank) if alpha is None else alpha)}


def _dense(*names: str) -> dict[ParamName, torch.Tensor]:
    return {ParamName(name): torch.ones(8) for name in names}


def features() -> Mapping[str, Adapter]:
    """Feature -> a LoRA that has it and nothing else."""
    matrix = {weight_of(ModuleName(_TO_Q)): torch.randn(8, 8, generator=torch.Generator().manual_seed(1))}
    found = {
        "linear layers": Adapter(_module(_TO_Q), {}),
        "3x3 convolutions": Adapter(_module(_CONV), {}),
        "1x1 convolutions": Adapter(_module("up_blocks.0.resnets.0.conv_shortcut"), {}),
        "`conv_in`, `conv_out`, `time_embedding`": Adapter(
            _module("conv_in") | _module("conv_out") | _module("time_embedding.linear_1"), {}
        ),
        "ranks that differ": Adapter(_module(_TO_Q, 4) | _module(_CONV, 1), {}),
        "alpha that is not the rank": Adapter(_module(_TO_Q, 2, 1.0) | _module(_CONV, 2, 4.0), {}),
        "biases of layers with factors": Adapter(_module(_CONV), _dense(f"{_CONV}.bias")),
        "biases of other layers": Adapter(_module(_TO_Q), _dense(f"{_CONV}.bias")),
        "norms": Adapter(_module(_TO_Q), _dense(f"{_NORM}.weight", f"{_NORM}.bias")),
        "dense matrices": Adapter({}, matrix),
        "factors in 8 bits": Adapter(_module(_TO_Q), {}).cast(torch.int8),
    }
    return {name: _named(adapter) for name, adapter in found.items()}


def _named(adapter: Adapter) -> Adapter:
    return Adapter(adapter.modules, adapter.dense, prefix="denoiser.", dtype=adapter.dtype)


def base() -> Component:
    """A base with the parameters of all features."""
    state = {f"denoiser.{name}.weight": torch.ones(shape) for name, shape in _SHAPES.items()}
    state |= {f"denoiser.{name}.bias": torch.ones(shape[0]) for name, shape in _SHAPES.items() if name != _TO_Q}
    state |= {f"denoiser.{_NORM}.{leaf}": torch.ones(8) for leaf in ("weight", "bias")}
    return open_checkpoint(state).component()


def cell(adapter: Adapter, to: FormatName, component: Component, folder: Path) -> str:
    """How a format holds a LoRA: `yes`, the options that it takes, or `no`."""
    for wishes in _REPLACING:
        path = folder / (f"{to}-{wishes.biases}" + ("" if to == "peft" else ".safetensors"))
        needs_base = wishes.norms == "replace"
        try:
            save_adapter(adapter, path, format=to, wishes=Wishes(wishes.biases, wishes.norms, component))
            found = load_adapter(path, base=component if needs_base else None)
        except AdapterError:
            continue
        if not _same(found, adapter):
            raise AssertionError(f"{to}: what was written is not what is read")
        if wishes.biases == "keep":
            if adapter.dtype != torch.int8:
                return "yes"
            return "yes" if found.dtype == torch.int8 else "as float"
        return "`lora_bias`" if wishes.biases == "lora_bias" else "`replace`"
    return "no"


def _same(one: Adapter, other: Adapter) -> bool:
    deltas = [(one.delta(name), other.delta(name)) for name in other.params]
    same = all(a is not None and b is not None and torch.equal(a, b) for a, b in deltas)
    return same and set(one.params) == set(other.params)


def held() -> str:
    """The table of features by format."""
    component = base()
    rows: list[list[str]] = []
    with TemporaryDirectory() as name:
        for number, (feature, adapter) in enumerate(features().items()):
            folder = Path(name) / str(number)
            rows.append([feature, *(cell(adapter, to, component, folder) for to in FORMATS)])
    return _table(["", *FORMATS], rows)


def readings(cases: Iterable[Reading] = READINGS) -> str:
    """The table of reference readers."""
    rows = [[f"`{case.to}`", f"`{case.call}`", _options(case), case.holds, case.note] for case in cases]
    return _table(["format", "read with", "options of `convert`", "exact", "but"], rows)


def _options(case: Reading) -> str:
    return " ".join(f"`--{name} {value}`" for name, value in case.wishes.items())


def writings() -> str:
    """The table of files of other programs."""
    groups: Sequence[tuple[str, Sequence[Writing]]] = (("PEFT", PEFT_FILES), ("LyCORIS", LYCORIS_FILES))
    rows = [
        [program, case.what, "`--base_model_path`" if case.needs_base else ""]
        for program, cases in groups
        for case in cases
    ]
    return _table(["written by", "file", "needs"], rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(text: str) -> str:
    """The page with its tables as they are now."""
    for name, table in {"held": held(), "readings": readings(), "writings": writings()}.items():
        mark = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        if not mark.search(text):
            raise AssertionError(f"{PAGE} has no place for the table {name}")
        text = mark.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE)
