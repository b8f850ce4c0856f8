"""What an adapter file says of itself."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbm_lora.adapter import FORMAT, AdapterMetadata, extraction_facts
from lbm_lora.adapter.metadata import parsed

FACTS = st.dictionaries(st.text().filter(lambda key: not key.startswith("lbm_lora_")), st.text())


@given(st.builds(AdapterMetadata, st.text(), st.text(), st.text(), st.text(), FACTS))
def test_to_a_header_and_back(metadata: AdapterMetadata) -> None:
    assert AdapterMetadata.from_header(metadata.to_header()) == metadata


def test_the_names_in_the_header() -> None:
    header = AdapterMetadata(FORMAT, "a", "b", "c", {"ss_network_dim": "4"}).to_header()
    assert header == {
        "lbm_lora_format": "1",
        "lbm_lora_base_fingerprint": "a",
        "lbm_lora_base_tensors": "b",
        "lbm_lora_tuned_fingerprint": "c",
        "ss_network_dim": "4",
    }
    assert AdapterMetadata().to_header() == {"lbm_lora_file": "LoRA"}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [({"lbm_extraction_method": "all_layers_analysis"}, True), ({"lbm_extraction_method": "x"}, False), ({}, False)],
)
def test_the_earlier_implementation_is_recognised(facts: dict[str, str], expected: bool) -> None:
    assert AdapterMetadata.from_header(facts).is_earlier_implementation is expected


def test_the_facts_of_an_extraction() -> None:
    facts = extraction_facts(
        rank=32,
        conv_rank=16,
        counts={"lora": 3, "dense": 2},
        errors={"relative_error": 1 / 3},
        settings={"include": (), "base": "base.ckpt"},
    )
    assert facts["ss_network_module"] == "networks.lora"
    assert (facts["ss_network_dim"], facts["ss_network_alpha"]) == ("32", "32")
    assert json.loads(facts["ss_network_args"]) == {"conv_dim": 16, "conv_alpha": 16}
    assert parsed(facts, "lbm_lora_counts") == {"lora": 3, "dense": 2}
    assert parsed(facts, "lbm_lora_errors") == {"relative_error": 0.333333}
    assert parsed(facts, "lbm_lora_settings") == {"include": [], "base": "base.ckpt"}
    assert parsed(facts, "lbm_lora_absent") == {}
    assert not any(value == "sdxl_v10" for value in facts.values())
    assert "ss_base_model_version" not in facts


@pytest.mark.parametrize(
    ("facts", "is_made"),
    [
        ({}, False),
        ({"lbm_lora_settings": '{"method":"plain"}'}, False),
        ({"lbm_lora_settings": '{"method":"calibrated"}'}, True),
        ({"lbm_lora_settings": '{"method":"plain"}', "lbm_lora_refinement": "{}"}, True),
    ],
)
def test_a_calibrated_or_refined_file_is_made_for_the_output(facts: dict[str, str], is_made: bool) -> None:
    assert AdapterMetadata(facts=facts).is_made_for_output is is_made
