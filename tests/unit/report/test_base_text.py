"""The text about an exact base."""

from lbm_lora.model.base import BaseItem
from lbm_lora.model.baseline import BaselineReport, TensorDistance
from lbm_lora.naming import ParamName
from lbm_lora.report import base_text

LEDGER = """\
Ledger of the base    denoiser    other      sum
  copied                     2        1        3  same shape
  cropped                    2        0        2  1 the first 32 of 96 input columns
                                                  1 the first 64 of 96 input columns
  padded                     0        0        0
  added                      0        1        1  LBM's own counter, 0
  dropped                    1        0        1  LBM has no added text and time embedding
  in the base                4        2        6"""

BASELINE = """\
Base against the tuned model
  Matched denoiser keys           2/2
  Average difference              0.00150000  GOOD
  Maximum difference              0.00300000
  unchanged                       50.0 % of the elements; 1 whole tensor
  noise floor                     1.60 % of the change is rounding of the tuned file
  This can be the base that it was tuned from: its matrices moved by 5.00% of their norm (median)."""


def item(key: str, action: str, reason: str) -> BaseItem:
    return BaseItem(key=key, source=key, action=action, from_shape=(1,), to_shape=(1,), reason=reason)  # pyright: ignore[reportArgumentType]


ITEMS = (
    item("denoiser.a.weight", "copied", "same shape"),
    item("denoiser.b.weight", "copied", "same shape"),
    item("vae.vae_model.c", "copied", "same shape"),
    item("denoiser.x.attn2.to_k.weight", "cropped", "the first 32 of 96 input columns"),
    item("denoiser.y.attn2.to_k.weight", "cropped", "the first 64 of 96 input columns"),
    item("num_iterations", "added", "LBM's own counter, 0"),
    item("denoiser.add_embedding.linear_1.bias", "dropped", "LBM has no added text and time embedding"),
)


def distance(name: str, *, mean: float, unchanged: float, relative: float) -> TensorDistance:
    return TensorDistance(
        name=ParamName(name),
        shape=(8, 8),
        mean_abs=mean,
        max_abs=mean,
        unchanged=unchanged,
        relative=relative,
        cosine=1.0,
        noise_floor=0.016,
    )


def test_the_ledger_of_a_base() -> None:
    assert base_text(ITEMS) == LEDGER


def test_a_base_against_a_tuned_model() -> None:
    tensors = (
        distance("a.weight", mean=0.003, unchanged=0.0, relative=0.1),
        distance("b.weight", mean=0.0, unchanged=1.0, relative=0.0),
    )
    baseline = BaselineReport(tensors=tensors, unmatched=(), noise_floor=0.016)
    assert base_text(ITEMS, baseline) == f"{LEDGER}\n\n{BASELINE}"


def test_many_reasons_are_cut() -> None:
    items = [item(f"denoiser.{i}", "cropped", f"reason {i}\x1b") for i in range(7)]
    lines = base_text(items).splitlines()
    assert lines[2].endswith(r"  1 reason 0\x1b")
    assert lines[6].strip() == "and 3 more reasons"
