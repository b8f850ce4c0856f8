"""Small results, made by hand, of the parts that several commands show."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lbm_lora.adapter import Ledger, LedgerRow, Status
from lbm_lora.factorize import Measure
from lbm_lora.fidelity.weights import WeightReport, weight_report
from lbm_lora.model.base import BaseItem
from lbm_lora.naming import ParamName


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working folder: results name files relative to it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def file(folder: Path) -> Callable[[str, int], Path]:
    """`file(name, nbytes)`: the relative path of a file with so many bytes."""

    def write(name: str, nbytes: int) -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * nbytes)
        return path

    return write


def row(name: str, status: Status, shape: tuple[int, ...], error: float, rank: int | None, reason: str) -> LedgerRow:
    """A tensor whose change has the norm 1, and whose error is a share of it."""
    measure = Measure(numel=10, delta_sq=1.0, error_sq=error**2, delta_abs=1.0, error_abs=error, noise_sq=0.0)
    return LedgerRow(ParamName(name), status, reason, shape, rank, measure)


@pytest.fixture
def weights() -> WeightReport:
    """Four tensors: a linear and a conv layer in the file, a dense delta, and one that was left out."""
    rows = (
        row("a.weight", Status.LORA, (4, 4), 0.2, 2, "linear"),
        row("b.weight", Status.LORA, (4, 2, 3, 3), 0.1, 4, "conv"),
        row("b.bias", Status.DENSE, (4,), 0.0, None, "1-dimensional"),
        row("c.weight", Status.EXCLUDED, (4, 4), 1.0, None, "in --exclude"),
    )
    return weight_report(Ledger(rows), base="base.safetensors", tuned="tuned.safetensors", adapter="lora.safetensors")


SHORT = """\
LoRA lora.safetensors: base.safetensors + LoRA against tuned.safetensors
  ledger                          2 lora + 1 dense + 0 unchanged + 1 excluded = 4 tensors
  ranks                           2 to 4, median 2; 1 module of 2 at full rank
  successfully tested             2 of 2 modules found
  perfect matches (error < 0.001) 0 of 2
  average error                   0.01500000
  average relative error          15.0 %
  total relative error            51.2 %  POOR (50 to 100 %, noticeable degradation)
  left out of the file            25.0 % of the change (squared norm), in 1 tensor
  noise floor                     0 %"""

VERBOSE = """\
  ✓ a.weight | LINEAR | rank 2 | error 20.000 %
  ✓ b.weight | CONV | rank 4 | error 10.000 %
  ✓ b.bias | DENSE | no rank | error 0.000 %
  - c.weight | excluded: in --exclude"""


@pytest.fixture
def short() -> str:
    """The short form of `weights`."""
    return SHORT


@pytest.fixture
def verbose() -> str:
    """The lines of --verbose for `weights`."""
    return VERBOSE


def item(key: str, action: str, reason: str) -> BaseItem:
    """A tensor of a base's ledger."""
    return BaseItem(key=key, source=key, action=action, from_shape=(3,), to_shape=(2,), reason=reason)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def base_ledger() -> tuple[BaseItem, ...]:
    """One tensor or two of each action but padding."""
    return (
        item("denoiser.a.weight", "copied", "same shape"),
        item("denoiser.b.weight", "copied", "same shape"),
        item("vae.vae_model.c", "copied", "same shape"),
        item("denoiser.x.attn2.to_k.weight", "cropped", "the first 32 of 96 input columns"),
        item("denoiser.y.attn2.to_k.weight", "cropped", "the first 64 of 96 input columns"),
        item("num_iterations", "added", "LBM's own counter, 0"),
        item("denoiser.add_embedding.linear_1.bias", "dropped", "LBM has no added text and time embedding"),
    )


BASE = """\
Ledger of the base
  action       denoiser  other  sum
  copied              2      1    3  same shape
  cropped             2      0    2  1 the first 32 of 96 input columns, 1 the first 64 of 96 input
                                     columns
  padded              0      0    0
  added               0      1    1  LBM's own counter, 0
  dropped             1      0    1  LBM has no added text and time embedding
  in the base         4      2    6"""


@pytest.fixture
def base_text() -> str:
    """The text of `base_ledger`."""
    return BASE
