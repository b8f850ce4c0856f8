"""Faults, by the kind of file that they are put into: each writes a spoilt copy of a good file.

A fault is refused (exit code 2), unless its name is in `MAY_PASS`: there a file may still mean something, such as one
with a byte flipped in a name that nobody reads.
"""

import io
import json
import os
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from faults.goods import image, png
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

Spoil = Callable[[Path, Path], None]
"""`spoil(target, good)`: write `target` from the good file."""
Faults = dict[str, Spoil]

DEEP = 100_000
PLACES = 12


def bytes_of(change: Callable[[bytes], bytes]) -> Spoil:
    return lambda target, good: void(target.write_bytes(change(good.read_bytes())))


def void(_: object) -> None:
    pass


def any_file() -> Faults:
    """Faults of any file: cut off, flipped, or something else under its name."""
    faults: Faults = {
        "missing": lambda target, good: None,
        "empty": lambda target, good: void(target.write_bytes(b"")),
        "one byte": lambda target, good: void(target.write_bytes(b"\0")),
        "random bytes": lambda target, good: void(target.write_bytes(random.Random(1).randbytes(5000))),
        "text": lambda target, good: void(target.write_text("This is no file of that kind.\n" * 50)),
        "zeros": lambda target, good: void(target.write_bytes(bytes(5000))),
        "null device": lambda target, good: target.symlink_to("/dev/null"),
        "zero device": lambda target, good: target.symlink_to("/dev/zero"),
        "fifo": lambda target, good: os.mkfifo(target),
        "loop of links": lambda target, good: target.symlink_to(target.name),
        "dangling link": lambda target, good: target.symlink_to("nowhere"),
        "empty folder": lambda target, good: target.mkdir(),
    }
    for place in range(PLACES):
        faults[f"cut at {place}/{PLACES}"] = bytes_of(lambda data, k=place: data[: 1 + len(data) * k // PLACES])
    faults["cut by one byte"] = bytes_of(lambda data: data[:-1])
    return faults


def flips(first: int, count: int) -> Faults:
    """One bit flipped at one of `count` places within the first bytes."""

    def flip(data: bytes, place: int) -> bytes:
        at = place * min(first, len(data)) // count
        return data[:at] + bytes([data[at] ^ (1 << (place % 8))]) + data[at + 1 :]

    return {f"flip {place}/{count}": bytes_of(lambda data, k=place: flip(data, k)) for place in range(count)}


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a `.safetensors` file."""
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def of_header(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """A changed header over the same data."""

    def spoil(data: bytes) -> bytes:
        header, rest = split(data)
        changed = change(header)
        return joined(header if changed is None else changed, rest)

    return bytes_of(spoil)


def of_entry(**fields: object) -> Spoil:
    """The header's entry of the first tensor with other fields."""

    def change(header: dict[str, Any]) -> None:
        name = next(key for key in header if key != "__metadata__")
        header[name] = {**header[name], **fields}

    return of_header(change)


def safetensors_header() -> Faults:
    """Headers that are not one, or that lie."""

    def entry(value: object) -> Spoil:
        return of_header(lambda header: header.update({next(k for k in header if k != "__metadata__"): value}))

    def metadata(value: object) -> Spoil:
        return of_header(lambda header: header.update(__metadata__=value))

    def second(header: dict[str, Any]) -> bytes:
        text = json.dumps(header)
        name = next(key for key in header if key != "__metadata__")
        return f"{text[:-1]}, {json.dumps(name)}: {json.dumps(header[name])}}}".encode()

    faults: Faults = {
        "header of a list": of_header(lambda header: []),
        "header null": of_header(lambda header: b"null"),
        "header no JSON": of_header(lambda header: b"{'a': 1}"),
        "header not UTF-8": of_header(lambda header: b"\xff\xfe{}"),
        "header deep": of_header(lambda header: b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}"),
        "header deep metadata": of_header(lambda header: b'{"__metadata__":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP),
        "header empty": of_header(lambda header: {}),
        "header repeats a tensor": of_header(second),
        "header longer than the file": bytes_of(lambda data: struct.pack("<Q", 2**62) + data[8:]),
        "header of 2^64 - 1 bytes": bytes_of(lambda data: struct.pack("<Q", 2**64 - 1) + data[8:]),
        "header shorter": bytes_of(lambda data: struct.pack("<Q", 40) + data[8:]),
        "more data than described": bytes_of(lambda data: data + bytes(64)),
        "data twice": bytes_of(lambda data: data + split(data)[1]),
        "metadata a list": metadata([1]),
        "metadata text": metadata("x"),
        "entry null": entry(None),
        "entry a list": entry([1, 2]),
        "entry text": entry("x"),
        "entry empty": entry({}),
    }
    for dtype in (None, 7, "f32", "F31", "C64", "U64", "", ["F32"], {"a": 1}):
        faults[f"dtype {dtype}"] = of_entry(dtype=dtype)
    huge = 2**63
    for shape in (None, 4, "2,2", [-1], [-2, -3], [huge], [huge, huge], [2.5], ["2"], [None], [[2]], [True], [0] * 70):
        faults[f"shape {str(shape)[:30]}"] = of_entry(shape=shape)
    for offsets in (None, 4, [0], [0, 1, 2], [8, 0], [-8, 8], [0, huge], [huge, huge], ["0", "8"], [0.0, 8.0], [4, 12]):
        faults[f"offsets {offsets}"] = of_entry(data_offsets=offsets)
    return faults


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a `.safetensors` file."""
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key).clone() for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def of_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    """The same file with other tensors."""

    def spoil(target: Path, good: Path) -> None:
        tensors, metadata = read(good)
        change(tensors)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, target, metadata=metadata)

    return spoil


def _named(tensors: Mapping[str, torch.Tensor], part: str, dims: int = 0) -> list[str]:
    return [
        key
        for key, value in tensors.items()
        if part in key and value.is_floating_point() and (not dims or value.dim() == dims)
    ]


def values(part: str, dims: int = 0) -> Faults:
    """Numbers that no tensor whose key holds `part` may have."""

    def put(number: float, which: int) -> Spoil:
        def change(tensors: dict[str, torch.Tensor]) -> None:
            name = _named(tensors, part, dims)[which]
            tensors[name].view(-1)[-1] = number

        return of_tensors(change)

    return {
        f"{number} in {part or 'tensor'} {which}": put(number, which)
        for number in (float("nan"), float("inf"), float("-inf"))
        for which in (0, -1)
    }


def forms(part: str = "") -> Faults:
    """Tensors of other dtypes and shapes, too many, too few."""

    def first(tensors: Mapping[str, torch.Tensor]) -> str:
        return next(key for key, tensor in tensors.items() if part in key and tensor.dim() > 1)

    def replaced(change: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
        return of_tensors(lambda tensors: tensors.update({first(tensors): change(tensors[first(tensors)])}))

    faults: Faults = {
        f"as {dtype}": replaced(lambda tensor, dtype=dtype: tensor.to(dtype))
        for dtype in (torch.int64, torch.int16, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn)
    }
    return faults | {
        "flattened": replaced(lambda tensor: tensor.flatten()),
        "another axis": replaced(lambda tensor: tensor[None]),
        "a row more": replaced(lambda tensor: torch.cat([tensor, tensor[:1]])),
        "a row less": replaced(lambda tensor: tensor[1:]),
        "no rows": replaced(lambda tensor: tensor[:0]),
        "a number": replaced(lambda tensor: tensor.flatten()[0]),
        "without a tensor": of_tensors(lambda tensors: tensors.pop(first(tensors))),
        "an unknown tensor": of_tensors(lambda tensors: tensors.update({"unknown.thing.weight": torch.zeros(3, 3)})),
        "a tensor renamed": of_tensors(lambda tensors: tensors.update({"x" * 3000: tensors.pop(first(tensors))})),
        "a name of control characters": of_tensors(
            lambda tensors: tensors.update({"\x1b[31m\x07\u202e": tensors.pop(first(tensors))})
        ),
    }


ENTRIES = (
    "null", "[]", "{}", "7", '"text"', "no JSON {", "NaN", "1e999", "-1", "[" * DEEP, '{"a":' * DEEP, "[null]", "",
    '{"layers": null}', "1" * 5000, "\ud7ff\x00\x1b[31m",
)  # fmt: skip


def entries(good: Path) -> Faults:
    """Every metadata entry of ours with a text that is something else."""
    _, metadata = read(good)

    def put(key: str, text: str) -> Spoil:
        return of_header(lambda header: header["__metadata__"].update({key: text}))

    return {f"entry {key} {text[:12]!r}": put(key, text) for key in metadata for text in ENTRIES}


WRONG = (None, "text", -1, 1e308, [], {}, [None], True, "NaN")


def facts(good: Path, key: str) -> Faults:
    """The JSON in one metadata entry, with each of its values replaced in turn."""
    _, metadata = read(good)
    value = json.loads(metadata[key])
    faults: Faults = {}
    for path in _paths(value, ()):
        for wrong in WRONG:

            def change(header: dict[str, Any], path: tuple[str | int, ...] = path, wrong: object = wrong) -> None:
                tree = json.loads(header["__metadata__"][key])
                place = tree
                for step in path[:-1]:
                    place = place[step]
                place[path[-1]] = wrong
                header["__metadata__"][key] = json.dumps(tree)

            faults[f"fact {'.'.join(map(str, path))[:60]} {wrong!r}"] = of_header(change)
    return faults


def _paths(value: object, above: tuple[str | int, ...]) -> list[tuple[str | int, ...]]:
    """Paths into a tree: at most the first three parts of each branch."""
    parts: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        parts.extend(value.items())
    elif isinstance(value, list):
        parts.extend(enumerate(value[:3]))
    if above:
        parts = parts[: 12 if len(above) == 1 else 2]
    if above == ("layers",):
        parts = parts[:2]
    return [found for key, part in parts for found in [(*above, key), *_paths(part, (*above, key))]]


MODULES: dict[str, Any] = {
    "null": None, "a list": [], "of nothing": {"a": []}, "of no shape": {"a": [[], "4"]},
    "of one side": {"a": [[4], "4"]}, "huge": {"a": [[2**23, 2**23], "4"]}, "a side of 2^63": {"a": [[2**63, 4], "4"]},
    "a side below zero": {"a": [[-4, 4], "4"]}, "a side of text": {"a": [["4", 4], "4"]},
    "10^5 ranks": {"a": [[4, 4], "4" * 100_000]}, "a width of 1": {"a": [[4, 4], "1"]}, "no width": {"a": [[4, 4], ""]},
    "widths in a list": {"a": [[4, 4], [4]]},
}  # fmt: skip
DENSE: dict[str, Any] = {
    "a name of control characters": {"\x1b[31m": [[4], "4"]}, "a long name": {"a" * 5000: [[4], "4"]},
    "two widths": {"a": [[4], "44"]}, "70 dimensions": {"a": [[1] * 70, "4"]}, "a number": 7,
}  # fmt: skip
INDEXES: dict[str, Any] = {
    "null": None, "a list": [], "empty": {}, "another prefix": {"prefix": "elsewhere."}, "no prefix": {"prefix": 7},
    **{f"modules {name}": {"modules": value} for name, value in MODULES.items()},
    **{f"dense {name}": {"dense": value} for name, value in DENSE.items()},
}  # fmt: skip


def packed() -> Faults:
    """Packed LoRAs whose index is none or lies, or whose data is not what the index says."""

    def index(change: Callable[[bytes], bytes]) -> Spoil:
        def replace(tensors: dict[str, torch.Tensor]) -> None:
            changed = bytearray(change(tensors["lbm_lora.index"].numpy().tobytes()))
            tensors["lbm_lora.index"] = torch.frombuffer(changed, dtype=torch.uint8)

        return of_tensors(replace)

    def fields(changed: object) -> Spoil:
        def edit(data: bytes) -> bytes:
            found = (
                {**json.loads(zlib.decompress(data)), **changed} if isinstance(changed, dict) and changed else changed
            )
            return zlib.compress(json.dumps(found).encode())

        return index(edit)

    def data(change: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
        return of_tensors(lambda tensors: tensors.update({"lbm_lora.data": change(tensors["lbm_lora.data"])}))

    faults = {f"index {name}": fields(changed) for name, changed in INDEXES.items()}
    return faults | {
        "index not compressed": index(zlib.decompress),
        "index cut": index(lambda data: data[: len(data) // 2]),
        "index of 10^9 spaces": index(lambda data: _spaces(10**9)),
        "index with something behind": index(lambda data: data + bytes(50)),
        "index deep": index(lambda data: zlib.compress(b"[" * DEEP + b"]" * DEEP)),
        "index not UTF-8": index(lambda data: zlib.compress(b"\xff{}")),
        "index of int16": of_tensors(lambda ts: ts.update({"lbm_lora.index": ts["lbm_lora.index"].to(torch.int16)})),
        "no index": of_tensors(lambda tensors: tensors.pop("lbm_lora.index")),
        "no data": of_tensors(lambda tensors: tensors.pop("lbm_lora.data")),
        "data a byte shorter": data(lambda found: found[:-1]),
        "data a byte longer": data(lambda found: torch.cat([found, found[:1]])),
        "data of ones": data(lambda found: torch.full_like(found, 255)),
        "data of zeros": data(torch.zeros_like),
        "data of floats": data(lambda found: found.float()),
    }


def _spaces(count: int) -> bytes:
    """So many spaces, compressed piece by piece."""
    packer, part = zlib.compressobj(9), b" " * 10**6
    return b"".join(packer.compress(part) for _ in range(count // len(part))) + packer.flush()


def torch_files() -> Faults:
    """Archives of `torch.save` that are none, or lie."""

    def archive(change: Callable[[dict[str, bytes]], object], compression: int = zipfile.ZIP_STORED) -> Spoil:
        def spoil(data: bytes) -> bytes:
            with zipfile.ZipFile(io.BytesIO(data)) as file:
                parts = {name: file.read(name) for name in file.namelist()}
            change(parts)
            out = io.BytesIO()
            with zipfile.ZipFile(out, "w", compression) as file:
                for name, part in parts.items():
                    file.writestr(name, part)
            return out.getvalue()

        return bytes_of(spoil)

    def pickled(change: Callable[[bytes], bytes]) -> Spoil:
        def edit(parts: dict[str, bytes]) -> None:
            name = next(name for name in parts if name.endswith("data.pkl"))
            parts[name] = change(parts[name])

        return archive(edit)

    def storage(change: Callable[[bytes], bytes | None]) -> Spoil:
        def edit(parts: dict[str, bytes]) -> None:
            name = next(name for name in parts if "/data/" in name)
            new = change(parts.pop(name))
            if new is not None:
                parts[name] = new

        return archive(edit)

    def saved(value: object) -> Spoil:
        return lambda target, good: torch.save(value, target)

    knot: list[Any] = []
    knot.append(knot)
    weight = torch.ones(3, 3)
    shared: Any = [1]
    for _ in range(60):
        shared = [shared, shared]
    faults: Faults = {
        "compressed": archive(lambda parts: None, zipfile.ZIP_DEFLATED),
        "no pickle": archive(lambda parts: [parts.pop(n) for n in list(parts) if n.endswith(".pkl")]),
        "another archive": archive(lambda parts: [parts.clear(), parts.update({"a.txt": b"x"})]),
        "big-endian": archive(lambda parts: [parts.update({n: b"big"}) for n in parts if n.endswith("byteorder")]),
        "storage missing": storage(lambda data: None),
        "storage shorter": storage(lambda data: data[:2]),
        "storage empty": storage(lambda data: b""),
        "pickle runs a command": pickled(lambda data: b"cposix\nsystem\n(S'touch ran'\ntR."),
        "pickle of a list": pickled(lambda data: b"]."),
        "pickle of a number": pickled(lambda data: b"I7\n."),
        "pickle of nothing": pickled(lambda data: b""),
        "pickle with a huge memo": pickled(lambda data: b"\x80\x02}r\xff\xff\xff\x7f."),
        "pickle with a huge text": pickled(lambda data: b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x00."),
        "pickle nested": pickled(lambda data: b"\x80\x02" + b"(" * DEEP + b"l" * DEEP + b"."),
        "pickle of a deep list": pickled(lambda data: b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b"."),
        "old format": lambda target, good: torch.save({"a": weight}, target, _use_new_zipfile_serialization=False),
        "a tensor alone": saved(weight),
        "no tensors": saved({"a": 1}),
        "complex tensors": saved({"a": torch.ones(3, 3, dtype=torch.complex64)}),
        "a sparse tensor": saved({"a": torch.eye(3).to_sparse()}),
        "only unknown names": saved({"a": weight}),
    }
    for place in range(10):
        faults[f"pickle flip {place}/10"] = pickled(lambda data, k=place: _flipped(data, len(data) * k // 10))
        faults[f"pickle cut {place}/10"] = pickled(lambda data, k=place: data[: len(data) * k // 10])
    for name, extra in {"a knot": knot, "a shared tree": shared}.items():
        faults[f"{name} beside the tensors"] = _with_extra(extra)
    return faults


def _with_extra(extra: object) -> Spoil:
    def spoil(target: Path, good: Path) -> None:
        torch.save({**torch.load(good, weights_only=True), "config": extra}, target)

    return spoil


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x11]) + data[at + 1 :]


def indexes() -> Faults:
    """Indexes of shards; the good file's folder is copied to the target's first."""

    def weight_map(change: Callable[[dict[str, Any]], object]) -> Spoil:
        def spoil(data: bytes) -> bytes:
            index = json.loads(data)
            changed = change(index["weight_map"])
            return json.dumps(index if changed is None else changed).encode()

        return bytes_of(spoil)

    def swapped(names: dict[str, Any]) -> None:
        files = sorted(set(names.values()))
        names.update({key: files[1 - files.index(file)] for key, file in names.items()})

    def first(value: object) -> Callable[[dict[str, Any]], None]:
        return lambda names: names.update({next(iter(names)): value})

    faults: Faults = {
        "wrong shards": weight_map(swapped),
        "one key in the wrong shard": weight_map(lambda names: first(list(names.values())[-1])(names)),
        "one shard for all": weight_map(lambda names: names.update(dict.fromkeys(names, next(iter(names.values()))))),
        "a key that no shard has": weight_map(lambda names: names.update(unknown=next(iter(names.values())))),
        "a key left out": weight_map(lambda names: names.pop(next(iter(names)))),
        "a missing shard": weight_map(first("gone.safetensors")),
        "a shard of another folder": weight_map(first("../x.safetensors")),
        "an absolute shard": weight_map(first("/etc/passwd")),
        "the folder as a shard": weight_map(first(".")),
        "an empty name": weight_map(first("")),
        "a name of NUL": weight_map(first("a\0b")),
        "a surrogate": weight_map(first("\ud800.safetensors")),
        "a name of 300 characters": weight_map(first("a" * 300)),
        "the index as a shard": weight_map(first("model.safetensors.index.json")),
        "no names": weight_map(lambda names: names.clear()),
        "no map": weight_map(lambda names: {}),
        "a map of numbers": weight_map(first(7)),
        "a map of lists": weight_map(first([1])),
        "a list": weight_map(lambda names: []),
        "a map null": weight_map(lambda names: {"weight_map": None}),
        "a map text": weight_map(lambda names: {"weight_map": "x"}),
        "deep": bytes_of(lambda data: b'{"weight_map":' + b"[" * DEEP),
        "NaN": bytes_of(lambda data: b'{"weight_map": NaN}'),
        "17 MiB": bytes_of(lambda data: data + b" " * 17 * 2**20),
    }
    return faults


def yaml_texts() -> Faults:
    """Texts that are no plain YAML, or too much of it."""
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
    )
    texts: dict[str, bytes] = {
        "billion laughs": bomb.encode(),
        "deep": b"a: " + b"[" * DEEP + b"]" * DEEP,
        "refers to itself": b"a: &a [*a]\n",
        "merges itself": b"a: &a {<<: *a, b: 1}\n",
        "runs a command": b"a: !!python/object/apply:os.system ['touch ran']\n",
        "a tag": b"a: !unknown 7\n",
        "a repeated key": b"a: 1\na: 2\n",
        "a date": b"a: 2024-13-45\n",
        "a list": b"- 1\n- 2\n",
        "a number": b"7\n",
        "UTF-16": "a: 1\n".encode("utf-16"),
        "a NUL": b"a: \x00\n",
        "a NUL escaped": b'backbone_signature: "a\\0b"\n',
        "a surrogate": b'backbone_signature: "\\ud800"\n',
        "tabs": b"a:\n\t- 1\n",
        "an unclosed bracket": b"a: [1, 2\n",
        "two documents": b"a: 1\n---\nb: 2\n",
        "17 MiB": b"#" * 17 * 2**20,
        "binary key": b"? [1, 2]\n: 3\n",
        "a key of an object": b"? {a: 1}\n: 3\n",
        "integer of 5000 digits": b"a: " + b"9" * 5000,
        "sexagesimal": b"a: 190:20:30\n",
        "unknown key": b"no_such_key: 1\n",
    }
    return {name: lambda target, good, text=text: void(target.write_bytes(text)) for name, text in texts.items()}


WRONG_VALUES: tuple[Any, ...] = (
    "text", "", -1, 0, 10**9, 10**30, 2**64, 1.5, float("nan"), float("inf"), [], {}, [None], ["a", 1], True, {"a": {}},
    "a\0b", "x" * 300,
)  # fmt: skip


def yaml_values(keys: list[str], wrong: tuple[Any, ...] = WRONG_VALUES) -> Faults:
    """Each key with values of other kinds; a dotted one is in a section."""

    def put(key: str, value: object) -> Spoil:
        def spoil(target: Path, good: Path) -> None:
            tree = yaml.safe_load(good.read_text())
            *sections, last = key.split(".")
            place = tree
            for section in sections:
                place = place.setdefault(section, {})
            place[last] = value
            target.write_text(yaml.safe_dump(tree))

        return spoil

    return {f"{key} {str(value)[:20]!r} {type(value).__name__}": put(key, value) for key in keys for value in wrong}


def images() -> Faults:
    """Files of images, and of what is none."""

    def of(make: Callable[[], bytes]) -> Spoil:
        return lambda target, good: void(target.write_bytes(make()))

    def sized(width: int, height: int) -> bytes:
        """A PNG whose header says a size that its data do not have."""
        import zlib

        head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        chunk = b"IHDR" + head
        start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
        data = b"IDAT" + zlib.compress(bytes(1000))
        end = b"IEND"
        return (
            start
            + struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
            + struct.pack(">I", 0) + end + struct.pack(">I", zlib.crc32(end))
        )  # fmt: skip

    def text_bomb() -> bytes:
        import zlib

        chunk = b"zTXt" + b"a\0\0" + zlib.compress(bytes(200 * 2**20))
        data = png(image(0))
        return data[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]

    frames = [image(seed) for seed in range(3)]
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(ran) (w) file closefile\nshowpage\n"
    return {
        "100000 x 100000": of(lambda: sized(100_000, 100_000)),
        "2^31 wide": of(lambda: sized(2**31 - 1, 1)),
        "0 wide": of(lambda: sized(0, 64)),
        "20000 x 20000": of(lambda: sized(20_000, 20_000)),
        "data shorter than its size": of(lambda: sized(64, 64)),
        "EPS": of(lambda: eps),
        "PDF": of(lambda: b"%PDF-1.4\n1 0 obj\n<<>>\nendobj\n"),
        "SVG": of(lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
        "PPM": of(lambda: png(image(0), "PPM")),
        "ICO": of(lambda: png(image(0), "ICO")),
        "TGA": of(lambda: png(image(0), "TGA")),
        "floating point": of(lambda: png(image(0).convert("F"), "TIFF")),
        "TIFF cut": of(lambda: png(image(0), "TIFF")[:5000]),
        "TIFF whose directory is a loop": of(lambda: b"II*\0\x08\0\0\0\0\0\x08\0\0\0"),
        "a text chunk of 200 MiB": of(text_bomb),
        "1 x 1": of(lambda: png(image(0, 1))),
        "1 x 4000": of(lambda: png(Image.new("RGB", (1, 4000)))),
        "4000 x 1": of(lambda: png(Image.new("RGB", (4000, 1)))),
        "animated": of(lambda: png(frames[0], "GIF", save_all=True, append_images=frames[1:])),
        "CMYK": of(lambda: png(image(0).convert("CMYK"), "JPEG")),
        "16 bits": of(lambda: png(Image.new("I;16", (64, 64), 40_000))),
        "palette": of(lambda: png(image(0).convert("P"))),
        "one bit": of(lambda: png(image(0).convert("1"))),
        "transparent": of(lambda: png(image(0).convert("RGBA"))),
        "a broken profile": of(lambda: png(image(0), icc_profile=b"no profile" * 20)),
    }


PASSING_IMAGES = (
    "1 x 1", "1 x 4000", "4000 x 1", "animated", "CMYK", "16 bits", "palette", "one bit", "transparent",
    "a broken profile", "a text chunk of 200 MiB", "PPM", "TGA", "ICO",
)  # fmt: skip
"""Images that a command may take; those of formats that are not opened are refused all the same."""


def shards() -> Faults:
    """Tar files that lie, or hold what is no pair."""

    def tar(members: list[tuple[str, bytes]], **fields: Any) -> Spoil:
        def spoil(target: Path, good: Path) -> None:
            with tarfile.open(target, "w") as file:
                for name, data in members:
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    for field, value in fields.items():
                        setattr(info, field, value)
                    file.addfile(info, io.BytesIO(data))

        return spoil

    jpeg = png(image(0), "JPEG")
    pair = [("0.source.jpg", jpeg), ("0.target.jpg", jpeg)]

    def field(at: int, text: bytes) -> Spoil:
        def spoil(data: bytes) -> bytes:
            block = bytearray(data[:512])
            block[at : at + len(text)] = text
            block[148:156] = b" " * 8
            block[148:156] = f"{sum(block):06o}\0 ".encode()
            return bytes(block) + data[512:]

        return bytes_of(spoil)

    return {
        "size beyond the file": field(124, b"77777777777\0"),
        "size negative": field(124, b"\xff" * 12),
        "size no number": field(124, b"zzzzzzzzzzz\0"),
        "size of 2^80": field(124, b"\x80" + b"\xff" * 11),
        "checksum": bytes_of(lambda data: data[:148] + b"0000000\0" + data[156:]),
        "type unknown": field(156, b"Z"),
        "type PAX": field(156, b"x"),
        "type sparse": field(156, b"S"),
        "name of NUL": field(0, b"\0" * 100),
        "name not UTF-8": field(0, b"\xff\xfe\xff.source.jpg\0"),
        "no members": tar([]),
        "only text": tar([("a.txt", b"x")]),
        "no images in members": tar([(name, b"x") for name, _ in pair]),
        "empty members": tar([(name, b"") for name, _ in pair]),
        "no targets": tar(pair[:1]),
        "links": tar(pair, type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        "hard links": tar(pair, type=tarfile.LNKTYPE, linkname="/etc/passwd"),
        "devices": tar(pair, type=tarfile.CHRTYPE),
        "two members of one name": tar([*pair, *pair]),
        "members outside": tar([(f"../../{name}", data) for name, data in pair]),
        "absolute members": tar([(f"/tmp/{name}", data) for name, data in pair]),
        "control characters": tar([(f"\x1b[31m{name}", data) for name, data in pair]),
        "names of 5000 characters": tar([("a" * 5000 + name, data) for name, data in pair]),
    }
