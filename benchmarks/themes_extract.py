"""What extraction costs and how good it is, beside the bare pass and the earlier implementation's method."""

from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench import CONV_RANK, FULL_BYTES, LORA_BYTES, RANK, REDUCED, Bench, Job, ratios
from benchmarks.pair import make_pair
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.extract import Action, plan_extraction
from lbm_lora.factorize import FULL_RANK, FixedRank, matrix_shape
from lbm_lora.factorize.krylov import SMALLEST_BLOCK, multiplies_bf16

RANKS = (4, 8, 16, 32, 64, 128, 256, FULL_RANK)
SEVERAL = (16, 32, 64)
DEPTHS = ((1, 1, 1), (1, 2, 2), (1, 2, 5), (1, 2, 10))


def extract(bench: Bench) -> dict[str, Any]:
    """extract 32/16 beside the bare pass on two threads, in both of its forms."""
    bench.room(LORA_BYTES, "a LoRA")
    runs = bench.side_by_side(
        {
            "bare pass": bench.bare_pass(),
            "bare pass by tensor": bench.bare_pass(blocked=False),
            "extract": bench.extract(bench.path("lora.safetensors")),
        }
    )
    found: dict[str, Any] = {
        "runs": runs,
        "ratios": {name: ratios(runs["extract"], runs[name]) for name in ("bare pass", "bare pass by tensor")},
        "work": _work(bench),
    }
    if bench.options.device != "cpu":
        found["agreement"] = _agreement(bench)
    return found


def svd(bench: Bench) -> dict[str, Any]:
    """The earlier method: an SVD with full matrices of one layer of each shape, times the number of such layers."""
    names = _matrices(bench)
    counts = Counter(matrix_shape(shape) for shape in names.values())
    chosen: dict[tuple[int, int], list[str]] = {}
    for name, shape in names.items():
        chosen.setdefault(matrix_shape(shape), []).append(name)
    rows: list[dict[str, Any]] = []
    for shape, layers in sorted(chosen.items(), key=lambda item: item[0][0] * item[0][1]):
        settings = {**bench.files, "name": layers[len(layers) // 2]}
        row: dict[str, Any] = {"shape": list(shape), "layers": counts[shape]}
        for what, full in (("full", True), ("thin", False)):
            run = bench.run(Job(name="svd", settings={**settings, "full": full}))
            row |= {f"{what}_s": run.result["seconds"], f"{what}_bytes": run.anon_bytes}
            if full:
                row["measured_thin_only"] = not run.result["full"]
        print(f"  {shape} x {counts[shape]}: full {row['full_s']:.2f} s, thin {row['thin_s']:.2f} s", flush=True)
        rows.append(row)
    return {
        "shapes": rows,
        "full_matrices_s": sum(row["full_s"] * row["layers"] for row in rows),
        "thin_s": sum(row["thin_s"] * row["layers"] for row in rows),
        "shapes_too_large_for_full_matrices": sum(row["measured_thin_only"] for row in rows),
    }


def error(bench: Bench) -> dict[str, Any]:
    """The error of fp32 factors against the exact optimum, before any rounding, and of the bf16 file."""
    bench.room(3 * LORA_BYTES, "a LoRA in fp32")
    path = bench.path("lora_fp32.safetensors")
    bench.run(bench.extract(path, precision="float"))
    found = {"fp32": _factors(bench, path), "bf16": _factors(bench, bench.adapter)}
    bench.drop(path)
    return found


def full_rank(bench: Bench) -> dict[str, Any]:
    """Rank 9999: time, and the error that is left at the bytes of bf16 factors."""
    bench.room(FULL_BYTES, "a LoRA of full rank")
    path = bench.path("full.safetensors")
    runs = bench.side_by_side(
        {"bare pass": bench.bare_pass(), "full rank": bench.extract(path, rank=FULL_RANK, conv_rank=FULL_RANK)},
        repeats=1,
    )
    shapes = [matrix_shape(shape) for shape in _matrices(bench).values()]
    factors = sum(2 * min(shape) * sum(shape) for shape in shapes)
    found = {"runs": runs, "bytes": path.stat().st_size, "bytes_of_factors": factors, "error": _factors(bench, path)}
    bench.drop(path)
    return found


def ranks(bench: Bench) -> dict[str, Any]:
    """Time of extract against the rank; convs get half of it, as 32/16 has it."""
    bench.room(FULL_BYTES, "a LoRA of full rank")
    rows: dict[str, Any] = {}
    path = bench.path("rank.safetensors")
    for rank in RANKS:
        conv_rank = rank if rank == FULL_RANK else max(1, rank // 2)
        label = "full" if rank == FULL_RANK else str(rank)
        rows |= bench.side_by_side({label: bench.extract(path, rank=rank, conv_rank=conv_rank)}, repeats=1)
        bench.drop(path)
    return {"runs": rows}


def several(bench: Bench) -> dict[str, Any]:
    """Several ranks in one pass beside one run of the largest, where the command has it."""
    flags = several_flags()
    if flags is None:
        return {"missing": "extract takes one rank at a time"}
    bench.room(6 * LORA_BYTES, "several LoRAs")
    path = bench.path("several.safetensors")
    runs = bench.side_by_side(
        {
            "one": bench.extract(path, rank=max(SEVERAL), conv_rank=max(SEVERAL) // 2),
            "several": bench.extract(path, rank=max(SEVERAL), conv_rank=max(SEVERAL) // 2, more=flags),
        }
    )
    return {"runs": runs, "ranks": list(SEVERAL), "ratios": ratios(runs["several"], runs["one"])}


def several_flags() -> list[str] | None:
    """The flags that make extract write several ranks in one pass; None while it has none."""
    from lbm_lora.workflows.extract import ExtractConfig

    if "ranks" not in {field.name for field in fields(ExtractConfig)}:
        return None
    return ["--ranks", *map(str, SEVERAL)]


def threads(bench: Bench) -> dict[str, Any]:
    """extract and the bare pass on one core and on two."""
    path = bench.path("lora.safetensors")
    jobs: dict[str, Job] = {}
    for count in (1, 2):
        jobs[f"bare pass {count}"] = bench.bare_pass(threads=count)
        jobs[f"extract {count}"] = replace(bench.extract(path), cores=count)
    runs = bench.side_by_side(jobs, repeats=1)
    return {
        "runs": runs,
        "speedup": {
            name: round(runs[f"{name} 1"]["work_s"] / runs[f"{name} 2"]["work_s"], 3)
            for name in ("extract", "bare pass")
        },
    }


def layers(bench: Bench) -> dict[str, Any]:
    """Time of extract against the number of layers, on narrower networks of several depths."""
    scale = min(REDUCED, bench.options.scale)
    rows: dict[str, Any] = {}
    for depth in DEPTHS:
        folder = bench.options.work / f"depth-{depth[2]}-{scale:g}"
        pair = make_pair(folder, scale=scale, depth=depth, seed=bench.options.seed)
        with open_checkpoint(pair.base) as one, open_checkpoint(pair.tuned) as other:
            plan = plan_extraction(one.component(), other.component(), FixedRank(linear=RANK, conv=CONV_RANK))
        job = bench.extract(bench.path("layers.safetensors"), pair=pair)
        count = len(plan.of(Action.DECOMPOSE))
        rows |= bench.side_by_side({str(count): job}, repeats=1)
        rows[str(count)]["parameters"] = pair.facts["parameters of the denoiser"]
        bench.drop(*job.outputs, pair.base, pair.tuned, folder / "pair.json")
    return {"runs": rows, "scale": scale}


def _work(bench: Bench) -> dict[str, Any]:
    """What extract cannot do without: operations of four block Krylov rounds there and back, in the dtype that they run
    in; and in fp32, of the last product and of the product of the factors, by which the error is measured."""
    rounds = fp32 = 0
    for shape in _matrices(bench).values():
        rank = FixedRank(linear=RANK, conv=CONV_RANK).rank_of(shape)
        rows, columns = matrix_shape(shape)
        rounds += 2 * rows * columns * 8 * max(rank, SMALLEST_BLOCK)
        fp32 += 2 * rows * columns * 2 * rank
    dtype = "bf16" if multiplies_bf16(torch.device(bench.options.device)) else "fp32"
    return {"rounds_flop": rounds, "rounds_dtype": dtype, "fp32_flop": fp32}


def _agreement(bench: Bench) -> dict[str, Any]:
    """fp32 factors of the device against the CPU's."""
    one, other = bench.path("cpu_fp32.safetensors"), bench.path("device_fp32.safetensors")
    bench.run(bench.extract(one, precision="float", device="cpu"))
    bench.run(bench.extract(other, precision="float"))
    run = bench.run(Job(name="agreement", settings={"one": str(one), "other": str(other)}))
    bench.drop(one, other)
    return run.result


def _factors(bench: Bench, path: Path) -> dict[str, Any]:
    """The errors of a file's modules, and of them all together: largest and mean ratio to the optimum."""
    settings = {**bench.files, "adapter": str(path), "per_shape": bench.options.error_layers}
    found = bench.run(Job(name="factors", settings=settings)).result
    rows = list(found["modules"].values())
    measured = [row["ratio"] for row in rows if row["ratio"] is not None]
    lost = sum((row["relative_error"] * row["norm"]) ** 2 for row in rows)
    total = sum(row["norm"] ** 2 for row in rows)
    return {
        "modules": found["modules"],
        "measured": len(rows),
        "of": found["of"],
        "file": found["facts"],
        "largest_ratio": max(measured, default=None),
        "mean_ratio": sum(measured) / len(measured) if measured else None,
        "largest_relative_error": max(row["relative_error"] for row in rows),
        "relative_error": (lost / total) ** 0.5,
    }


def _matrices(bench: Bench) -> dict[str, tuple[int, ...]]:
    """Key -> shape of every matrix that extract decomposes."""
    with open_checkpoint(bench.pair.base) as one, open_checkpoint(bench.pair.tuned) as other:
        plan = plan_extraction(one.component(), other.component(), FixedRank())
        prefix = plan.pairing.tuned.prefix
    return {prefix + item.name: item.shape for item in plan.of(Action.DECOMPOSE)}
