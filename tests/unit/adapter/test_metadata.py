"""What an adapter file says of itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbm_lora.adapter import AdapterMetadata

FACTS = st.dictionaries(st.text().filter(lambda key: not key.startswith("lbm_lora_")), st.text())


@given(st.builds(AdapterMetadata, st.text(), st.text(), st.text(), st.text(), FACTS))
def test_to_a_header_and_back(metadata: AdapterMetadata) -> None:
    assert AdapterMetadata.from_header(metadata.to_header()) == metadata


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
