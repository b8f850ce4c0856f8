"""The reference shows the options of the functions."""

from pathlib import Path

import pytest

pytest.importorskip("griffe", reason="the extra docs is not installed")

SOURCES = Path(__file__).parents[3] / "src"


def test_a_function_has_the_parameters_and_the_words_of_its_stub() -> None:
    import griffe

    from tools.stub_signatures import StubSignatures

    loaded = griffe.load("lbm_lora", search_paths=[SOURCES], extensions=griffe.load_extensions(StubSignatures))
    extract = loaded["api.loras.extract"]
    names = [parameter.name for parameter in extract.parameters]
    assert names[:3] == ["base", "tuned", "save_to"]
    assert {"rank", "conv_rank", "max_size", "save_precision"} <= set(names)
    assert "options" not in names
    assert "rank: Rank of linear layers." in extract.docstring.value
