"""Fill in the tables of docs/reliability.md: limits from the constants of the code, counts of the matrix of faults.

    PYTHONPATH=tests:src python tools/reliability.py     rewrites the page between its markers

A test fails if a constant has changed since.
"""

import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from lbm_lora.adapter import packed_index
from lbm_lora.adapter.formats.rebuild import MOST_VALUES
from lbm_lora.adapter.lora_scale import MOST
from lbm_lora.checkpoint import safetensors_file, torch_file
from lbm_lora.configs import marks
from lbm_lora.hub import fetch as hub
from lbm_lora.model import names
from lbm_lora.naming import _SECONDS as PATTERN_SECONDS  # pyright: ignore[reportPrivateUsage]
from lbm_lora.plain_text import LIMITS
from lbm_lora.shards import fetch
from lbm_lora.shards.tar import MOST_CHARACTERS, MOST_SHARDS
from lbm_lora.training.settings.model_keys import MOST_ITERATIONS
from lbm_lora.training.settings.training_file import LARGEST

PAGE = Path(__file__).parents[1] / "docs/reliability.md"


def limits() -> str:
    """Return the table of limits."""
    rows = [
        ("JSON or YAML file", f"{LIMITS.nbytes // 2**20} MiB"),
        ("values of a YAML file, references followed", f"{LIMITS.values:,}"),
        ("digits of a whole number in JSON", str(LIMITS.digits)),
        ("header of a `.safetensors`", f"{safetensors_file._MAX_HEADER_BYTES // 10**6} MB"),  # pyright: ignore[reportPrivateUsage]
        ("pickle in a `.ckpt`", f"{torch_file._MAX_PICKLE_BYTES // 2**20} MiB"),  # pyright: ignore[reportPrivateUsage]
        ("plain values next to the tensors of a `.ckpt`", f"{torch_file._MAX_VALUES:,}"),  # pyright: ignore[reportPrivateUsage]
        ("index of a packed LoRA, unpacked", f"{packed_index._MOST_INDEX // 2**20} MiB"),  # pyright: ignore[reportPrivateUsage]
        ("values of a delta rebuilt from LoHa, LoKr or Tucker factors", f"{MOST_VALUES:,}"),
        ("a regular expression on one name", f"{PATTERN_SECONDS} s"),
        ("shards of one pattern, and its characters", f"{MOST_SHARDS:,}; {MOST_CHARACTERS:,}"),
        *((f"`{key}` of a network", f"{most:,}") for key, most in names.MOST.items()),
        ("other numbers of a network's configuration", f"{names.MOST_OF_OTHERS:,}"),
        ("a URL that sends nothing", f"{fetch.PATIENCE:g} s"),
        ("contents of a compressed shard", f"{fetch.MOST_UNPACKED} times its bytes"),
        ("an answer of the Hugging Face hub", f"{hub.PATIENCE:g} s"),
        ("absolute value of a LoRA's scale", f"{MOST:g}"),
        ("N of `init_lora: pissa_niter_N`", str(MOST_ITERATIONS)),
        ("whole numbers of a training file, where no smaller limit is named", f"{LARGEST:,}"),
        *(
            (f"`{kind}` flags", _bounds(getattr(marks, kind)))
            for kind in ("Size", "Seed", "Batch", "Steps", "Probes", "Devices", "Nodes", "Workers", "Threads")
        ),
    ]
    return _table(("what", "limit"), rows)


def counts(kinds: Iterable[str]) -> str:
    """Return the table of cases by kind of input."""
    found = Counter(kind.partition(" of ")[0] if kind.startswith("flags of ") else kind for kind in kinds)
    rows = [(kind, f"{count:,}") for kind, count in found.items()]
    return _table(("input", "cases"), [*rows, ("all", f"{sum(found.values()):,}")])


def filled(page: str, parts: dict[str, str]) -> str:
    """Return the page with each part between its markers."""
    for name, text in parts.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        before, _, rest = page.partition(start)
        page = f"{before}{start}\n{text}\n{end}{rest.partition(end)[2]}"
    return page


def _bounds(kind: object) -> str:
    bounds = next(part for part in get_args(kind) if isinstance(part, marks.Bounds))
    return f"{bounds.least:,} to {bounds.most:,}"


def _table(head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(["| " + " | ".join(row) + " |" for row in (head, ("---", "---"), *rows)])


def main() -> None:
    """Rewrite the page."""
    from faults.goods import write_goods
    from faults.harness import Worker
    from faults.matrix import cases

    with tempfile.TemporaryDirectory() as folder:
        worker = Worker()
        kinds = [case.kind for case in cases(write_goods(Path(folder) / "in", worker))]
        worker.close()
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), {"limits": limits(), "counts": counts(kinds)}))


if __name__ == "__main__":
    main()
