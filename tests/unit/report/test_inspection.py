"""What `inspect` finds out about files, and says: values are known, and no file steers a terminal or a page."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lbm_lora.adapter import Adapter, AdapterMetadata, LoraModule, save_adapter
from lbm_lora.checkpoint import fingerprint, open_checkpoint
from lbm_lora.choices import FormatName
from lbm_lora.errors import AdapterError, Option
from lbm_lora.report.inspection.differences import adapter_difference, checkpoint_difference, fit_of
from lbm_lora.report.inspection.drawing import (
    HeatMap,
    file_facts_of,
    fit_lines,
    header_lines,
    norm_map,
    render_page,
    screen,
)
from lbm_lora.report.inspection.facts import adapter_facts, checkpoint_facts, file_facts, read_as_lora, readers_of
from lbm_lora.report.inspection.values import CheckpointFacts, FileFacts, Fit
from lbm_lora.verbs.inspect import inspect

Save = Callable[[str, Mapping[str, Tensor]], Path]


def facts_of(path: Path) -> FileFacts:
    with open_checkpoint(path) as checkpoint:
        return file_facts(checkpoint, read_as_lora(checkpoint, "auto"))


def test_a_lora_and_its_bytes(save: Save) -> None:
    path = save("l.safetensors", {"a.lora_up.weight": torch.ones(3, 2), "a.lora_down.weight": torch.ones(2, 4)})
    found = facts_of(path)
    assert (found.kind, found.tensors, found.files) == ("a LoRA", 2, ("l.safetensors",))
    assert found.nbytes == path.stat().st_size
    assert found.nbytes - found.header_nbytes == 4 * (6 + 8)
    assert found.dtypes == {"fp32": 2}


@pytest.mark.parametrize(
    ("tensors", "kind"),
    [
        ({"denoiser.a.weight": torch.ones(2)}, "an LBM checkpoint"),
        ({"layer.weight": torch.ones(2)}, "a file of tensors of no known kind"),
        ({}, "a file without tensors"),
    ],
)
def test_files_that_are_no_lora(tensors: dict[str, Tensor], kind: str, save: Save) -> None:
    found = facts_of(save("x.safetensors", tensors))
    assert (found.kind, found.refusal) == (kind, None)


def test_a_lora_that_cannot_be_read_says_why(save: Save) -> None:
    found = facts_of(save("x.safetensors", {"unet:0:up": torch.ones(2)}))
    assert found.kind.startswith("a LoRA in the format of cloneofsimo's lora")
    assert isinstance(found.refusal, AdapterError)


Rand = Callable[..., Tensor]


def checkpoint_of(state: dict[str, Tensor], *, is_exact_base: bool = False, known: bool = False) -> CheckpointFacts:
    checkpoint = open_checkpoint(state)
    names = {fingerprint(checkpoint.component()).digest: "the one"} if known else {}
    return checkpoint_facts(checkpoint, names, is_exact_base=is_exact_base, config="in the file")[0]


@pytest.fixture
def state(rand: Rand) -> dict[str, Tensor]:
    return {
        "denoiser.up_blocks.0.a.weight": rand(4, 3).bfloat16(),
        "denoiser.conv_in.weight": rand(4, 4, 3, 3),
        "vae.x": rand(5),
        "num_iterations": torch.tensor(0.0),
    }


def test_tensors_that_are_not_finite_are_named(state: dict[str, Tensor]) -> None:
    state["denoiser.conv_in.weight"][0, 0, 0, 0] = math.inf
    assert checkpoint_of(state).broken == ("conv_in.weight",)


Build = Callable[..., Adapter]
Spectrum = Callable[..., LoraModule]


def test_norms_are_those_of_the_dense_deltas(lora: Build, rand: Callable[..., Tensor]) -> None:
    conv = LoraModule(name="down_blocks.0.conv1", down=rand(3, 4, 3, 3), up=rand(8, 3, 1, 1), alpha=1.5)  # pyright: ignore[reportArgumentType]
    adapter = lora(conv, dense={"down_blocks.0.conv1.bias": rand(8)})
    found = adapter_facts(adapter, adapter.nbytes, {})
    wanted = {name: float(adapter.delta(name).norm()) for name in adapter.params}  # pyright: ignore[reportOptionalMemberAccess]
    assert {row.name: row.norm for row in found.deltas} == pytest.approx(wanted, rel=1e-5)
    assert found.norm == pytest.approx(math.hypot(*wanted.values()))
    (block,) = found.blocks
    assert (block.block, block.tensors, block.ranks, block.share) == ("down_blocks.0", 2, 3, pytest.approx(1))
    assert found.kinds == {"conv 3x3": 1, "bias": 1}
    assert found.scalings == {0.5: 1}


def test_ranks_that_carry_the_energy(lora: Build, spectrum: Spectrum) -> None:
    adapter = lora(spectrum("a.proj", [10.0, 3.0, 0.5, 0.1]))  # energies 100, 9, 0.25, 0.01
    (row,) = adapter_facts(adapter, adapter.nbytes, {}).deltas
    assert (row.rank, row.rank_90, row.rank_99) == (4, 1, 2)


def test_a_file_truncated_to_an_error_has_the_size_that_is_said(
    lora: Build, spectrum: Spectrum, tmp_path: Path
) -> None:
    whole = lora(spectrum("a.proj", [10.0, 3.0, 0.2, 0.1]), spectrum("b.proj", [1.0, 0.8]))
    save_adapter(whole, tmp_path / "whole.safetensors")
    nbytes = (tmp_path / "whole.safetensors").stat().st_size
    five = {one.relative_error: one for one in adapter_facts(whole, nbytes, {}).truncations}[0.05]
    assert five.ranks == 4
    kept = lora(spectrum("a.proj", [10.0, 3.0]), spectrum("b.proj", [1.0, 0.8]))
    save_adapter(kept, tmp_path / "kept.safetensors")
    assert abs(five.nbytes - (tmp_path / "kept.safetensors").stat().st_size) < 64  # digits of offsets


def test_values_that_are_not_finite_are_named(lora: Build, spectrum: Spectrum) -> None:
    good = spectrum("a.proj", [1.0, 0.5])
    adapter = lora(replace(good, down=good.down * math.nan), dense={"a.bias": torch.tensor([1.0, math.inf])})
    found = adapter_facts(adapter, adapter.nbytes, {})
    assert found.broken == ("a.proj.weight", "a.bias")
    assert math.isnan(found.norm)
    assert found.truncations == ()


@pytest.mark.parametrize(
    ("file_format", "read_by"),
    [
        ("native", set()),
        ("comfyui", {"ComfyUI"}),
        ("kohya", {"diffusers"}),
        ("kohya-diffusers", {"ComfyUI", "diffusers", "LyCORIS"}),
        ("diffusers", {"diffusers"}),
        ("peft", {"PEFT"}),
        ("lycoris", {"LyCORIS"}),
    ],
)
def test_factors_alone(file_format: FormatName, read_by: set[str], lora: Build, spectrum: Spectrum) -> None:
    adapter = replace(lora(spectrum("conv_in", [1.0])), file_format=file_format)
    assert {reader.name for reader in readers_of(adapter) if reader.reads == "all"} == {"lbm-lora", *read_by}


def test_what_diffusers_does_to_dense_deltas(lora: Build, spectrum: Spectrum) -> None:
    dense = {name: torch.ones(3) for name in ("conv_in.bias", "conv_norm_out.weight")}
    adapter = lora(spectrum("conv_in", [1.0]), dense=dense)
    found = {
        name: next(r for r in readers_of(replace(adapter, file_format=name)) if r.name == "diffusers")
        for name in ("diffusers", "kohya")
    }
    assert (found["diffusers"].reads, found["diffusers"].note) == (
        "part",
        "it ignores 1 dense delta of norms or of layers without factors",
    )
    assert (found["kohya"].reads, found["kohya"].note) == ("nothing", "its SDXL converter stops at 2 dense deltas")


def test_the_options_of_convert_say_what_becomes_of_biases_and_norms(lora: Build, spectrum: Spectrum) -> None:
    dense = {"conv_in.bias": torch.ones(3), "conv_norm_out.weight": torch.ones(4)}
    adapter = lora(spectrum("conv_in", [1.0]), dense=dense)
    assert [reader.options for reader in readers_of(adapter)] == [
        "",
        "--to comfyui",
        "--to diffusers --biases lora_bias --norms drop",
        "--to peft --biases lora_bias --norms drop",
        "--to lycoris --biases drop",
    ]


def test_deltas_of_factors_differ_as_the_matrices_do(lora: Build, rand: Rand) -> None:
    one = LoraModule(name="a.proj", down=rand(2, 30), up=rand(20, 2), alpha=1.0)  # pyright: ignore[reportArgumentType]
    other = LoraModule(name="a.proj", down=rand(3, 30), up=rand(20, 3), alpha=6.0)  # pyright: ignore[reportArgumentType]
    found = adapter_difference(lora(one), lora(other))
    gap = one.delta() - other.delta()
    (row,) = found.rows
    assert row.match == "different"
    assert row.norm == pytest.approx(float(gap.norm()), rel=1e-5)
    assert row.relative == pytest.approx(float(gap.norm() / one.delta().norm()), rel=1e-5)
    cosine = torch.nn.functional.cosine_similarity(one.delta().flatten(), other.delta().flatten(), dim=0)
    assert row.cosine == pytest.approx(float(cosine), abs=1e-5)
    assert (found.relative, found.cosine) == (row.relative, row.cosine)


def test_what_only_one_has_counts_as_zero_in_the_other(lora: Build, spectrum: Spectrum) -> None:
    first = lora(spectrum("a.proj", [3.0]), spectrum("b.proj", [4.0]))
    second = lora(spectrum("b.proj", [4.0]), dense={"c.bias": torch.tensor([5.0])})
    found = adapter_difference(first, second)
    assert {row.name: row.match for row in found.rows} == {
        "a.proj.weight": "only first",
        "b.proj.weight": "same",
        "c.bias": "only second",
    }
    assert found.relative == pytest.approx(math.sqrt((9 + 25) / (9 + 16)))


def test_tensors_of_checkpoints(rand: Rand) -> None:
    weight = rand(4, 4)
    first = {"denoiser.conv_in.weight": weight, "denoiser.conv_in.bias": torch.zeros(4), "vae.x": torch.ones(2)}
    second = {"denoiser.conv_in.weight": weight + 0.5, "vae.x": torch.ones(2), "denoiser.new": torch.ones(3)}
    found = checkpoint_difference(open_checkpoint(first), open_checkpoint(second))
    rows = {row.name: row for row in found.rows}
    assert {name: row.match for name, row in rows.items()} == {
        "conv_in.weight": "different",
        "conv_in.bias": "only first",
        "new": "only second",
        "vae.x": "same",
    }
    assert rows["conv_in.weight"].largest == pytest.approx(0.5)
    assert rows["conv_in.weight"].norm == pytest.approx(2.0)
    assert [row.name for row in found.rows][-1] == "vae.x"  # the denoiser's come first


def test_a_lora_and_its_base_its_tuned_checkpoint_and_another(
    lora: Build, spectrum: Spectrum, save: Callable[[str, Mapping[str, Tensor]], Path], rand: Rand
) -> None:
    states = {name: {"denoiser.a.weight": rand(6, 5), "denoiser.b.weight": rand(2)} for name in ("base", "tuned", "x")}
    parts = {name: open_checkpoint(state).component() for name, state in states.items()}
    prints = {name: fingerprint(part) for name, part in parts.items()}
    metadata = AdapterMetadata("1", prints["base"].digest, prints["base"].packed(), prints["tuned"].digest)
    adapter = lora(spectrum("a", [1.0]), metadata=metadata)
    found = {name: fit_of(adapter, parts[name], prints[name]) for name in states}
    assert {name: (fit.base, fit.fits) for name, fit in found.items()} == {
        "base": ("base", True),
        "tuned": ("tuned", False),
        "x": ("other", False),
    }
    assert set(found["x"].differing) == {"a.weight", "b.weight"}


def file_of(adapter: Adapter) -> FileFacts:
    """The facts of a file that holds an adapter, its header aside."""
    with open_checkpoint({"a": torch.ones(1)}) as checkpoint:
        plain = file_facts(checkpoint, adapter)
    return replace(plain, nbytes=2_000_000, adapter=adapter_facts(adapter, 2_000_000, {"b" * 32: "base.safetensors"}))


def test_why_a_file_is_not_read_with_the_option_of_the_front_end() -> None:
    with open_checkpoint({"a": torch.ones(1)}) as checkpoint:
        file = file_facts(checkpoint, AdapterError("It is a DoRA. Give ", Option("base_model_path"), "."))
    spelt = dict(file_facts_of(file, lambda option: f"--{option.name}"))
    assert spelt["not read"] == "It is a DoRA. Give --base_model_path."


def test_a_fit_and_why_there_is_none() -> None:
    assert dict(fit_lines(Fit(matched=3, unmatched=(), mismatched=(), base="base"))) == {
        "fits": "yes",
        "names": "3 match by name and shape",
        "base": "this is the checkpoint that the LoRA was made from",
    }
    other = Fit(matched=1, unmatched=("x",), mismatched=("y", "z"), base="other", differing=("a.weight",))
    assert dict(fit_lines(other)) == {
        "fits": "no",
        "names": "1 match by name and shape",
        "unmatched": "1 name: x",
        "shapes": "2 parameters: y, z of another shape",
        "base": "the LoRA was made from another base; different here: 1 tensor: a.weight",
    }


def test_the_header_is_unpacked_and_escaped() -> None:
    header = {
        "z\x1b[2J": "\x1b]0;x\x07",
        "deep": "{" * 100_000,
        "lbm_lora_settings": '{"rank":8,"dense":true,"exclude":[],"sizes":["1","2"],"share":0.25}',
        "list": '["a"]',
    }
    lines = header_lines(header, left_out=("deep",))
    assert lines[0] == ("lbm_lora_settings", "rank 8, dense yes, sizes 1 2, share 0.25")
    assert ("z\\x1b[2J", "\\x1b]0;x\\x07") in lines
    assert ("list", '["a"]') in lines
    assert dict(header_lines(header))["deep"] == "{" * 100_000


def cells_of(heat: HeatMap) -> dict[tuple[str, str], tuple[str, float]]:
    """Block and layer -> text and shade."""
    found: dict[tuple[str, str], tuple[str, float]] = {}
    for block, cells in heat.cells.items():
        for layer, html in cells.items():
            shade, text = re.findall(r"--shade: ([\d.]+).*>([^<]+)</span>", html)[0]
            found[block, layer] = text, float(shade)
    return found


def test_norms_by_block_and_layer(lora: Build, spectrum: Spectrum) -> None:
    adapter = lora(
        spectrum("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", [3.0]),
        spectrum("mid_block.attentions.0.transformer_blocks.1.attn1.to_q", [4.0]),
        spectrum("conv_in", [0.5]),
        dense={"conv_norm_out.weight": torch.tensor([0.05])},
    )
    found = norm_map(adapter_facts(adapter, 100, {}).deltas, "change")
    cells = cells_of(found)
    heads = ["<span>conv</span>", "<span>attn1.to_q</span>", "<span>norm</span>"]
    assert [column.screen for column in found.columns[1:]] == heads
    assert cells["mid_block", "attn1.to_q"] == ("5", pytest.approx(1))
    assert cells["conv_in", "conv"] == ("0.5", pytest.approx(0.5))  # a tenth: half of two decades
    assert cells["conv_norm_out", "norm"] == ("0.05", pytest.approx(0, abs=1e-6))
    assert len(cells) == 3


def test_thousands_of_blocks_and_layers_are_gathered(lora: Build) -> None:
    adapter = lora(dense={f"b{i}.layer{i}.bias": torch.ones(1) for i in range(500)})
    found = norm_map(adapter_facts(adapter, 100, {}).deltas, "change")
    assert (len(found.cells), len(found.columns)) == (61, 42)
    assert found.columns[-1].screen == "<span>others</span>"
    assert max(float(text) for text, _ in cells_of(found).values()) ** 2 == pytest.approx(440, rel=0.01)


def write_lora(path: Path, rand: Rand, names: list[str], metadata: dict[str, str] | None = None) -> Path:
    tensors = {f"{name}.lora_up.weight": rand(4, 2) for name in names}
    save_file(tensors | {f"{name}.lora_down.weight": rand(2, 3) for name in names}, path, metadata=metadata)
    return path


def fits_a_screen(text: str) -> bool:
    lines = text.split("\n")
    return len(lines) <= 40 and all(len(line) <= 80 for line in lines)


HOSTILE = {f"key{i}\x1b[2J": "\x1b]0;title\x07\u202e" + "v" * 5000 for i in range(50)} | {"deep": "{" * 9999}


def test_a_hostile_file_fits_a_screen_and_is_escaped(tmp_path: Path, rand: Rand) -> None:
    names = [f"x\x1b[31m{i}{'y' * 300}.l" for i in range(60)]
    path = write_lora(tmp_path / ("n" * 100 + "\x1b[1m.safetensors"), rand, names, HOSTILE)
    text = screen(inspect(path))
    assert fits_a_screen(text)
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "\\x1b[1m" in text
    assert "blocks more (--json lists all)" in text


def test_statistics_cannot_be_compared(tmp_path: Path, rand: Rand) -> None:
    statistics = tmp_path / "s.safetensors"
    save_file({"x": torch.ones(2)}, statistics, metadata={"lbm_lora_statistics": "1"})
    second = write_lora(tmp_path / "l.safetensors", rand, ["a"])
    text = screen(inspect(statistics, second))
    assert "files of these two kinds cannot be compared" in text


def test_a_page_of_one_lora(tmp_path: Path, rand: Rand) -> None:
    found = inspect(write_lora(tmp_path / "l.safetensors", rand, ["mid_block.a.conv1"]))
    page = render_page(found)
    assert page == render_page(found)
    assert "<h1>l.safetensors</h1>" in page
    assert all(f"<h3>{title}</h3>" in page for title in ("Norm of the change", "Ranks in use", "Blocks", "Readers"))
    (cell,) = re.findall(r'<span class="cell hot" style="--shade: 1.000" title="1 tensor, [^"]*">([\d.]+)</span>', page)
    assert found.file.adapter is not None
    assert float(cell) == float(f"{found.file.adapter.norm:.3g}")
    assert "http" not in re.sub(r"http-equiv", "", page)
    assert "<script" not in page


def test_names_from_a_file_are_text(tmp_path: Path, rand: Rand) -> None:
    path = tmp_path / "<b>.safetensors"
    name = "<img src=x onerror=alert(1)>.\x1b[31m"
    save_file(
        {f"{name}.lora_up.weight": rand(4, 2), f"{name}.lora_down.weight": rand(2, 3)},
        path,
        metadata={"<script>": "</style>\x07"},
    )
    page = render_page(inspect(path))
    assert "<img" not in page
    assert "<script>" not in page
    assert page.count("</style>") == 1
    assert "\x1b" not in page
    assert "\x07" not in page
