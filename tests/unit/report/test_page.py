"""The HTML page: well-formed, self-contained, complete, and safe against names from files of others."""

import json
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from lbm_lora.adapter import LedgerRow, Status
from lbm_lora.fidelity.outputs import ImageSet, LoraFile, OutputComparison
from lbm_lora.fidelity.weights import WeightReport
from lbm_lora.report import Provenance, Report, render_html
from lbm_lora.report import page as page_module

Build = Callable[..., WeightReport]
Row = Callable[..., LedgerRow]
Sets = Callable[..., ImageSet]

VOID = {"meta", "link", "img", "input", "br", "wbr", "hr"}
LOADING = {"src", "href", "srcset", "action", "data", "poster", "background"}
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(2)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "' onclick='alert(3)",
)


class Page(HTMLParser):
    """What a page is made of; raises where a tag is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.cells: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("th", "td"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)
        if self.open and self.open[-1] in ("th", "td"):
            self.cells[-1] += data

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.tags if name in attrs]

    @property
    def figures(self) -> dict[str, dict[str, object]]:
        return json.loads(next(text for text in self.texts["script"] if text.startswith('{"plot')))


def test_the_page_is_complete(report: Report, build_set: Sets) -> None:
    page = Page(render_html(report, images=[build_set("cup.png")]))
    assert set(report.weights.counts) <= set(page.cells)
    for result in report.weights.rows:
        assert result.name in page.cells
    for block in report.weights.blocks:
        assert block.block in page.cells
    assert {"cup.png", "tree.jpg", "base", "base + LoRA", "40.50", "equal"} <= set(page.cells)
    text = "".join(text for texts in page.texts.values() for text in texts)
    for words in (
        "32.3 %",
        "0.00693333",
        "The VAEs differ in 3 of 248 tensors.",
        "1 of 3 perfect matches",
        "8 times amplified",
    ):
        assert words in text
    outputs = {"outputs-timesteps", "outputs-images"}
    assert set(page.figures) == {"plot-modules", "plot-histogram", "plot-noise", "plot-rank"} | outputs
    assert set(page.figures) <= set(page.attributes("id"))
    assert {"LPIPS (vgg), mean", "0.0125", "2.0e-05", "PSNR in mask", "38.00", "4.00 %", "1000"} <= set(page.cells)


def test_the_page_needs_no_network(report: Report, build_set: Sets) -> None:
    page = Page(render_html(report, images=[build_set("cup.png")]))
    references = [value for name in LOADING for value in page.attributes(name)]
    sections = ["#images", "#scores", "#weights", "#provenance"]
    assert [value for value in references if value.startswith("#")] == sections
    assert {value.removeprefix("#") for value in sections} <= set(page.attributes("id"))
    loaded = [value for value in references if not value.startswith("#")]
    assert len(loaded) == 6  # the empty icon, four views and the difference
    assert all(value.startswith("data:") for value in loaded)
    assert sum(tag == "script" for tag, _ in page.tags) == 3
    assert not any("@import" in text or "url(" in text for text in page.texts["style"])
    own = [text for text in page.texts["script"] if "plotly.js v" not in text]
    assert len(own) == 2
    assert not any("http" in text for texts in ({**page.texts, "script": own}).values() for text in texts)
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv"))
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_names_from_files_cannot_become_markup(
    report: Report, build: Build, row: Row, build_outputs: Callable[..., OutputComparison], build_set: Sets
) -> None:
    rows = [row(f"{name}.weight", Status.LORA, (4, 4), error=0.1, rank=2, reason=name) for name in HOSTILE]
    left_out = row(f"{HOSTILE[0]}.bias", Status.EXCLUDED, (4,), error=1, reason=HOSTILE[1])
    weights = replace(build(*rows, left_out), base=HOSTILE[0], tuned=HOSTILE[1], adapter=HOSTILE[2], failed=HOSTILE)
    assert report.outputs is not None
    scores = tuple(replace(v, variant=HOSTILE[i]) for i, v in enumerate(report.outputs.images[0].scores))
    images = [replace(report.outputs.images[0], image=name, scores=scores) for name in HOSTILE[:2]]
    loras = [LoraFile(variant=v.variant, file=HOSTILE[2], nbytes=1, method=HOSTILE[0]) for v in scores]
    outputs = build_outputs(*images, loras=tuple(loras), device=HOSTILE[0], reference=HOSTILE[1], lpips=HOSTILE[2])
    text = render_html(
        Report(weights=weights, outputs=outputs, notes=HOSTILE),
        images=[build_set(HOSTILE[1], views={HOSTILE[0]: b"RIFF", HOSTILE[4]: b"RIFF"}, difference_title=HOSTILE[2])],
        provenance=Provenance(files={HOSTILE[0]: HOSTILE[2]}, settings={HOSTILE[3]: HOSTILE[1]}),
    )
    page = Page(text)
    plain = Page(render_html(report, images=[build_set("cup.png")]))
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags} | {"strong", "code"}
    assert sum(tag == "script" for tag, _ in page.tags) == 3
    assert sum(attrs.get("src", "") != "" for tag, attrs in page.tags if tag == "img") == 3
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert {f"{name}.weight" for name in HOSTILE} <= set(page.cells)  # as they are, but as text
    assert page.figures["plot-modules"]["data"]
    shown = json.dumps([page.figures[name] for name in ("outputs-bytes", "outputs-timesteps", "outputs-images")])
    assert "&lt;script&gt;" in shown  # Plotly has markup of its own
    assert "<script" not in shown
    assert "<img" not in shown


def headings(page: Page) -> list[str]:
    return [text.strip() for text in page.texts["h2"]]


def test_images_lead_where_they_were_measured(report: Report, build_set: Sets) -> None:
    page = Page(render_html(report, images=[build_set("cup.png")]))
    assert headings(page) == ["Images", "Scores", "Weights", "Provenance"]
    assert page.attributes("aria-label")[:2] == ["Sections", "Verdict in images"]
    assert page.texts["title"] == ["lora.safetensors: 40.50 dB"]
    summaries = [text.strip() for text in page.texts["summary"]]
    assert "Weight errors in detail" in summaries
    lead = " ".join("".join(page.texts["p"]).split())
    assert "Worst image: 40.50 dB, cup.png. As a rule of thumb: no visible difference" in lead
    assert "the base alone: 16.12 dB" in lead


def test_weights_lead_without_images(report: Report) -> None:
    page = Page(render_html(replace(report, outputs=None)))
    assert headings(page) == ["Weights", "Provenance"]
    assert page.attributes("aria-label")[:2] == ["Sections", "Verdict in weights"]
    assert page.texts["title"] == ["lora.safetensors: 32.3 % error"]
    assert [text.strip() for text in page.texts["summary"]] == ["All 6 tensors"]
    assert "No images were measured." in "".join(page.texts["p"])


@pytest.mark.parametrize(("method", "said"), [("calibrated", True), ("plain", False)])
def test_the_weight_error_of_a_calibrated_file_is_put_right(
    report: Report, outputs: OutputComparison, method: str, said: bool
) -> None:
    lora = LoraFile(variant="base + LoRA", file="l.safetensors", nbytes=1000, method=method)
    page = Page(render_html(replace(report, outputs=replace(outputs, loras=(lora,)))))
    assert ("high on purpose and says little" in "".join(page.texts["p"])) == said
    assert ("high on purpose: calibrated" in page.texts["dd"]) == said


def test_images_are_limited(report: Report, build_set: Sets, monkeypatch: pytest.MonkeyPatch) -> None:
    one = build_set("first.png")
    monkeypatch.setattr(page_module, "IMAGES_NBYTES", 5 * len(one.difference))
    page = Page(render_html(report, images=[one, build_set("second.png")]))
    assert len([text for text in page.attributes("alt") if text]) == 5
    assert any("Left out, to keep this page small: second.png." in text for text in page.texts["p"])
