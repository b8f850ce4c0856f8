"""Change good files at random, and read them: a reader may refuse a file, and nothing else.

    python -m faults.fuzz --seconds 3600 [--seed 1] [--corpus FOLDER]

The seeds are the good inputs of the matrix, and the files of the corpus; a file that a reader fails on is written
there. Each reader gets the same number of turns. The exit code is 1 if there was a finding.
"""

import argparse
import collections
import hashlib
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import torch
from faults.goods import FOREIGN, Goods, write_goods
from faults.harness import Worker

from lbm_lora.adapter import load_adapter
from lbm_lora.adapter.packed import DATA, INDEX, decode_packed
from lbm_lora.calibration import load_statistics
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import LbmLoraError
from lbm_lora.imaging.image_file import read_image
from lbm_lora.model.config import read_config
from lbm_lora.model.names import checkpoint_shapes
from lbm_lora.shards.tar import read_shard
from lbm_lora.training.settings import read_train_config

CORPUS = Path(__file__).parent / "corpus"
SECONDS = 20
"""Longest time for one file."""

Reader = Callable[[Path], object]

TOKENS = (
    b"null", b"[]", b"{}", b"-1", b"0", b"1e999", b"NaN", b"18446744073709551616", b"9223372036854775807", b'"', b"[",
    b"{", b"}", b"\0", b"\xff", b"../", b"F32", b"BF16", b"I8", b"data_offsets", b"shape", b"__metadata__", b"&a",
    b"*a", b": ", b"\n", b"!!python/object", b"<<: ",
)  # fmt: skip


class SlowError(Exception):
    """A reader took longer than `SECONDS`."""


def read_all(path: Path) -> None:
    """Every tensor of a checkpoint."""
    with open_checkpoint(path) as checkpoint:
        for key in checkpoint.specs:
            checkpoint.read(key).float().sum()


def read_adapter(path: Path) -> None:
    adapter = load_adapter(path)
    for name in list(adapter.params)[:4]:
        adapter.delta(name)


def read_packed(path: Path) -> None:
    """Read a packed LoRA whose index, before compression, is a file; without data, nearly all are refused late."""
    index = torch.frombuffer(bytearray(zlib.compress(path.read_bytes())), dtype=torch.uint8)
    decode_packed({INDEX: index, DATA: torch.zeros(2000, dtype=torch.uint8) + 64}, path)


def read_moments(path: Path) -> None:
    statistics = load_statistics(path)
    for name in list(statistics)[:4]:
        _ = statistics[name]


def read_samples(path: Path) -> None:
    for found in read_shard(path, "shard"):
        for part in found.parts.values():
            part.read(64)


def seeds(goods: Goods) -> dict[str, tuple[Reader, list[Path]]]:
    """Reader by name, with the files to start from."""
    small = goods / "small"
    native = [small / "lora.safetensors", small / "int8.safetensors"]
    found: dict[str, tuple[Reader, list[Path]]] = {
        "safetensors": (read_all, [small / "base.safetensors"]),
        "torch": (read_all, [small / "base-torch.ckpt"]),
        "native LoRA": (read_adapter, native),
        "packed LoRA": (read_adapter, [small / "packed.safetensors"]),
        "index of a packed LoRA": (read_packed, [small / "packed-index.json"]),
        "statistics": (read_moments, [goods / "lbm/statistics.safetensors"]),
        "image": (lambda path: read_image(path), [goods / "images/0.png", goods / "mask.png"]),
        "shard": (read_samples, [goods / "shards/0.tar"]),
        "config.yaml": (lambda path: checkpoint_shapes(read_config(path)), [goods / "config.yaml"]),
        "training file": (read_train_config, [goods / "train.yaml"]),
    }
    for name in FOREIGN:
        path = goods / ("lbm/peft/adapter_model.safetensors" if name == "peft" else f"lbm/{name}.safetensors")
        found[f"{name} LoRA"] = (read_adapter, [path])
    return found


def mutated(data: bytes, draw: random.Random) -> bytes:
    """A few random changes, most of them near the beginning, where headers are."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 8))):
        near = min(len(found), draw.choice((8, 64, 1024, 8192, len(found) or 1)))
        at = draw.randrange(near + 1) if near else 0
        kind = draw.randrange(7)
        if kind == 0 and found:
            found[min(at, len(found) - 1)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            found[at:at] = draw.choice(TOKENS)
        elif kind == 2:
            token = draw.choice(TOKENS)
            found[at : at + len(token)] = token
        elif kind == 3:
            del found[at : at + draw.choice((1, 2, 8, 100))]
        elif kind == 4:
            piece = found[at : at + draw.choice((1, 8, 64))]
            found[at:at] = piece * draw.choice((1, 2, 50))
        elif kind == 5:
            del found[draw.randrange(len(found) + 1) :]
        elif found:
            other = draw.randrange(len(found))
            found[at : at + 16] = found[other : other + 16]
    return bytes(found)


def repaired(data: bytes) -> bytes:
    """The length of a safetensors header, made right again: else most changes end at it."""
    end = data.find(b"}}", 8)
    return (end + 2 - 8).to_bytes(8, "little") + data[8:] if data[8:9] == b"{" and end > 0 else data


def finding_of(reader: Reader, path: Path) -> str:
    """What went wrong; empty where the file was read or refused."""

    def slow(_number: int, _frame: FrameType | None) -> None:
        raise SlowError

    signal.signal(signal.SIGALRM, slow)
    signal.alarm(SECONDS)
    try:
        reader(path)
    except LbmLoraError as error:
        return "" if error.exit_code == 2 else traceback.format_exc()
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.alarm(0)
    return ""


def fuzz(goods: Goods, folder: Path, corpus: Path, seconds: float, seed: int) -> tuple[dict[str, int], list[str]]:
    """Read changed files for some time; returns the number of files by reader, and the findings."""
    counts: dict[str, int] = collections.Counter()
    findings: dict[str, str] = {}
    draw = random.Random(seed)
    readers = seeds(goods)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, (reader, files) in readers.items():
            kept = sorted((corpus / name).glob("*")) if (corpus / name).is_dir() else []
            good = draw.choice([*files, *kept])
            data = mutated(good.read_bytes(), draw)
            if good.suffix == ".safetensors" and draw.random() < 0.5:
                data = repaired(data)
            path = folder / f"x{good.suffix}"
            path.write_bytes(data)
            counts[name] += 1
            found = finding_of(reader, path)
            key = f"{name}: {': '.join(line[:120] for line in found.strip().splitlines()[-3:])}"
            if found and key not in findings:
                findings[key] = found
                (corpus / name).mkdir(parents=True, exist_ok=True)
                (corpus / name / f"{hashlib.sha256(data).hexdigest()[:12]}{good.suffix}").write_bytes(data)
                print(key, flush=True)
    return counts, list(findings.values())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, default=CORPUS)
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker()
        goods = write_goods(Path(folder) / "in", worker)
        worker.close()
        counts, findings = fuzz(goods, Path(folder), arguments.corpus, arguments.seconds, arguments.seed)
    print("\n".join(findings))
    print(", ".join(f"{name} {count:,}" for name, count in counts.items()))
    print(f"{sum(counts.values()):,} files, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
