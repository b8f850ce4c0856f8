"""Files that a reader once failed on, found by `make fuzz`: each is read or refused now."""

from pathlib import Path

import pytest
from faults.fuzz import CORPUS, finding_of, seeds
from faults.goods import Goods

pytestmark = pytest.mark.faults

FILES = sorted(path for path in CORPUS.rglob("*") if path.is_file())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CORPUS)))
def test_a_file_of_the_corpus_is_read_or_refused(path: Path) -> None:
    reader, _ = seeds(Goods(Path("none")))[path.parent.name]
    assert finding_of(reader, path) == ""
