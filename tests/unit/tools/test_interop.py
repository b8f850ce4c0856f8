"""The table of interop runs: outcomes of a JUnit report by test module."""

from collections import Counter
from xml.etree import ElementTree

from packaging.requirements import Requirement

from tools.interop import READERS, TESTS, VERSIONS, counts, row

REPORT = """<testsuites><testsuite>
<testcase classname="tests.interop.test_a_loras" name="one"/>
<testcase classname="tests.interop.test_a_loras" name="two"><failure message="x"/></testcase>
<testcase classname="tests.interop.test_b_loras" name="one"><skipped message="x"/></testcase>
<testcase classname="tests.interop.test_b_loras" name="two"><error message="x"/></testcase>
</testsuite></testsuites>"""


def test_outcomes_are_counted_by_module() -> None:
    found = counts(ElementTree.fromstring(REPORT))
    assert found == {
        "test_a_loras": Counter(passed=1, failed=1),
        "test_b_loras": Counter(skipped=1, failed=1),
    }
    assert row("a 1, b 2", found, ["test_a_loras", "test_b_loras", "test_c_loras"]) == (
        "| a 1, b 2 | 1 failed, 1 passed | 1 failed, 1 skipped |  |"
    )


def test_every_environment_has_every_reader() -> None:
    for requirements in VERSIONS.values():
        assert set(READERS) <= {Requirement(one).name for one in requirements}
    assert len(list(TESTS.glob("test_*_loras.py"))) == 3
