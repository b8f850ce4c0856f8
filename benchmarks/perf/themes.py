"""Themes of the benchmark: what to run, and against which reference. Each returns the numbers of its result file."""

import shutil
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.perf import jobs
from benchmarks.perf.bench import CONV_RANK, LARGE, RANK, Bench, Job
from benchmarks.perf.loras import make_lora
from benchmarks.perf.page import BLOCKS, COLUMNS, rate_name
from benchmarks.perf.pair import lbm_config, make_backbone
from lbm_lora.bundled import PAIRS, PHOTOS
from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.factorize import FULL_RANK, FixedRank, has_matrix_view, matrix_shape
from lbm_lora.factorize.krylov import SMALLEST_BLOCK, multiplies_bf16
from lbm_lora.naming import DENOISER_PREFIX

SEVERAL = (16, 32, 64)
CALIBRATED_SHARE = 0.02  # size of the calibrated LoRA: 100 MB for the real LBM
NETWORKS = ("lbm_lora.model.bridge_pipeline", "lbm_lora.apply")  # imported by the jobs themselves
TRAIN_STEPS = 3
REFINE_STEPS = 2


def extract(bench: Bench) -> dict[str, Any]:
    """Compare extract 32/16 with both forms of the bare pass."""
    lora = bench.path("lora.safetensors")
    runs = bench.side_by_side({**bench.bare_passes(), "extract": bench.extract(lora)})
    return {"runs": runs, "work": _least_work(bench)}


def svd(bench: Bench) -> dict[str, Any]:
    """Time the earlier method: an SVD with full matrices for one layer of each shape, times the number of layers."""
    layers: dict[tuple[int, int], list[str]] = {}
    for name, shape in _matrices(bench).items():
        layers.setdefault(matrix_shape(shape), []).append(name)
    rows: list[dict[str, Any]] = []
    for shape, names in sorted(layers.items(), key=lambda item: item[0][0] * item[0][1]):
        run = bench.run(Job(function=jobs.svd, settings={**bench.files, "name": names[len(names) // 2]}))
        rows.append({"shape": list(shape), "layers": len(names), **run.result})
        print(f"  {rows[-1]}", flush=True)
    full, thin = (sum(row["layers"] * row[key] for row in rows) for key in ("full_s", "thin_s"))
    return {"shapes": rows, "full_matrices_s": full, "thin_s": thin}


def error(bench: Bench) -> dict[str, Any]:
    """Measure the error of fp32 factors against the exact optimum before rounding, and of the bf16 file."""
    path = bench.path("lora_fp32.safetensors")
    bench.run(bench.extract(path, save_precision="float"))
    found = {"fp32": _errors(bench, path), "bf16": _errors(bench, bench.lora)}
    bench.drop(path)
    return found


def full_rank(bench: Bench) -> dict[str, Any]:
    """Measure rank 9999: time, and the remaining error at the size of bf16 factors."""
    path = bench.path("full.safetensors")
    extract = bench.extract(path, rank=FULL_RANK, conv_rank=FULL_RANK)
    runs = bench.side_by_side({BLOCKS: bench.bare_passes()[BLOCKS], "full rank": extract}, repeats=1)
    shapes = [matrix_shape(shape) for shape in _matrices(bench).values()]
    factors = sum(2 * min(shape) * sum(shape) for shape in shapes)
    found = {"runs": runs, "bytes": path.stat().st_size, "bytes_of_factors": factors, "error": _errors(bench, path)}
    bench.drop(path)
    return found


def several(bench: Bench) -> dict[str, Any]:
    """Compare several ranks in one pass with a run of the largest."""
    path, rank = bench.path("several.safetensors"), max(SEVERAL)
    one = bench.extract(path, rank=rank, conv_rank=None)
    all_of_them = bench.extract(path, rank=rank, conv_rank=None, ranks=SEVERAL)
    return {"runs": bench.side_by_side({"one": one, "several": all_of_them}), "ranks": list(SEVERAL)}


def calibrated(bench: Bench) -> dict[str, Any]:
    """Measure output-aware extraction: calibrate on four images at all timesteps, and extract with its statistics,
    without running the LoRA and with its check.
    """
    tuned, statistics = bench.pair.tuned, bench.path("statistics.safetensors")
    flags = {"tuned_model_path": tuned, "save_to": statistics, "device": bench.options.device}
    points = {"images": PHOTOS, "size": bench.image_size}
    max_size = f"{max(1, round(CALIBRATED_SHARE * tuned.stat().st_size / 1e6))}MB"
    calibrate = bench.command("calibrate", inputs=(tuned,), outputs=(statistics,), **flags, **points)
    lora = bench.path("calibrated.safetensors")
    flags = {"conv_rank": None, "calibration": statistics, "max_size": max_size}
    extract = partial(bench.extract, lora, inputs=(statistics,), **flags)
    jobs = {
        "calibrate": calibrate,
        "extract --calibration --no_check": extract(no_check=True),
        "extract --calibration": extract(),
    }
    runs = bench.side_by_side(jobs, repeats=1)
    size = bench.image_size
    points = f"four images of {size} x {size} at every trained timestep"
    return {"runs": runs, "size": size, "points": points, "max_size": max_size}


def machine(bench: Bench) -> dict[str, Any]:
    """Measure the processor's rates for the operations that an extraction needs."""
    run = bench.run(Job(function=jobs.product_rates, settings={"columns": COLUMNS}))
    return {"limits": {rate_name(dtype): round(rate, 3) for dtype, rate in run.result.items()}}


def base(bench: Bench) -> dict[str, Any]:
    """Compare base, for a full-size fp32 backbone, with copying the base's bytes twice."""
    backbone = make_backbone(bench.options.work / f"backbone-{bench.options.scale:g}", scale=bench.options.scale)
    config = bench.path("config.yaml")
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(lbm_config(bench.options.scale).model_dump(mode="json")))
    copies = [bench.path("copy_1.bin"), bench.path("copy_2.bin")]
    runs = bench.side_by_side({"copy": bench.copy(copies)}, repeats=1)
    bench.drop(*copies)
    output = bench.path("exact_base.safetensors")
    flags = {"config_path": config, "backbone_signature": backbone, "save_path": output}
    files = sorted(backbone.glob("*/*.safetensors"))
    job = bench.command("base", inputs=files, outputs=(output, output.with_suffix(".ckpt")), **flags)
    runs |= bench.side_by_side({"base": job}, repeats=1)
    bench.drop(*job.outputs)
    return {"runs": runs}


def fuse(bench: Bench) -> dict[str, Any]:
    """Compare fusing into a checkpoint with copying it."""
    base, lora = bench.pair.base, bench.lora
    output, copy = bench.path("fused.safetensors"), bench.path("copy.bin")
    flags = {"base_model_path": base, "lora_path": lora, "save_to": output}
    job = bench.command("fuse", inputs=(base, lora), outputs=(output,), **flags)
    runs = bench.side_by_side({"copy": bench.copy([copy]), "fuse": job})
    bench.drop(output, copy)
    return {"runs": runs}


def resize(bench: Bench) -> dict[str, Any]:
    """Compare resizing a LoRA of rank 64/32 to 16/8, and to a size, with copying its file."""
    lora = bench.path("rank_64.safetensors")
    lora.parent.mkdir(parents=True, exist_ok=True)
    ranks = FixedRank(linear=64, conv=32)
    make_lora(lora, scale=bench.options.scale, seed=bench.options.seed, ranks=ranks)
    output, copy = bench.path("resized.safetensors"), bench.path("copy.bin")
    size = f"{lora.stat().st_size // 4}B"
    flags = {"lora_path": lora, "save_to": output}
    to_rank = bench.command("resize", inputs=(lora,), outputs=(output,), **flags, rank=16)
    to_size = bench.command("resize", inputs=(lora,), outputs=(output,), **flags, max_size=size)
    settings = {"source": str(lora), "targets": [str(copy)]}
    copied = Job(function=jobs.copy, settings=settings, inputs=(lora,), outputs=(copy,))
    runs = bench.side_by_side({"copy": copied, "resize": to_rank, "resize to a size": to_size})
    bench.drop(lora, output, copy)
    return {"runs": runs, "size": size}


def validate(bench: Bench) -> dict[str, Any]:
    """Compare validate (weights) with the bare pass."""
    lora = bench.lora
    job = bench.on_pair("validate", inputs=(lora,), lora_path=lora, report=bench.path("report"))
    return {"runs": bench.side_by_side({**bench.bare_passes(), "validate": job})}


def merge(bench: Bench) -> dict[str, Any]:
    """Measure merging two LoRAs with random factors: losslessly, to a rank, and by the method that computes most."""
    ranks, scale = FixedRank(linear=RANK, conv=CONV_RANK), bench.options.scale
    inputs = (bench.path("merge_1.safetensors"), bench.path("merge_2.safetensors"))
    for seed, path in enumerate(inputs, 1):
        path.parent.mkdir(parents=True, exist_ok=True)
        make_lora(path, scale=scale, seed=seed, ranks=ranks)
    output = bench.path("merged.safetensors")
    flags = {"lora_path": inputs, "save_to": output, "lora_scale": (1, 0.5)}
    variants: dict[str, dict[str, object]] = {"merge": {}, "to rank 32": {"rank": RANK}, "knots": {"method": "knots"}}
    jobs = {
        label: bench.command("merge", inputs=inputs, outputs=(output,), **flags, **more)
        for label, more in variants.items()
    }
    runs = bench.side_by_side(jobs, repeats=1)
    bench.drop(*inputs, output)
    return {"runs": runs}


def load(bench: Bench) -> dict[str, Any]:
    """Time loading a file to a ready model, in the file's dtype."""
    tuned = bench.pair.tuned
    settings = {"path": str(tuned), "dtype": "bf16"}
    job = Job(function=jobs.load, settings=settings, imports=NETWORKS, inputs=(tuned,))
    runs = bench.side_by_side({"load": job})
    results = [run["result"] for run in runs["load"]["runs"]]
    medians = {key: statistics.median(result[key] for result in results) for key in results[0]}
    return {"runs": runs, "file_bytes": tuned.stat().st_size, **medians}


def infer(bench: Bench) -> dict[str, Any]:
    """Compare one step with a fused LoRA to the raw call of the network, bf16."""
    lora, size = bench.lora, 512 if bench.options.scale >= LARGE else 128
    base, device = bench.pair.base, bench.options.device
    settings = {"base": str(base), "lora": str(lora), "size": size, "dtype": "bf16", "device": device}
    run = bench.run(Job(function=jobs.infer, settings=settings, imports=NETWORKS, inputs=(base, lora)))
    print(f"  infer: {run}", flush=True)
    return {**run.result, "size": size, "anon_bytes": run.anon_bytes}


def train(bench: Bench) -> dict[str, Any]:
    """Time a few optimizer steps of a rank 32/16 LoRA on all modules, bf16 base, batch size 1, checkpointed."""
    run, config, base = bench.path("training"), bench.path("training.yaml"), bench.pair.base
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    data = {"train_folder": str(PAIRS), "source_key": "source.png", "target_key": "target.png"}
    model = {"base_model_path": str(base), "lora_rank": RANK, "lora_conv_rank": CONV_RANK}
    steps = {"image_size": [bench.image_size], "batch_size": 1, "max_steps": TRAIN_STEPS, "save_interval": TRAIN_STEPS}
    output = {"device": bench.options.device, "save_ckpt_path": str(run), "logger": "none"}
    config.write_text(yaml.safe_dump({**data, **model, **steps, **output}))
    runs = bench.side_by_side({"train": bench.command("train", inputs=(base,), path_config=config)}, repeats=1)
    shutil.rmtree(run)
    return {"runs": runs, "size": bench.image_size}


def refine(bench: Bench) -> dict[str, Any]:
    """Time a few optimizer steps of refine on a plain rank 32/16 LoRA: one training image, one held-out image."""
    lora, refined = bench.lora, bench.path("refined.safetensors")
    learnt, held = sorted(PHOTOS.glob("*.jpg"))[:2]
    files = {"lora_path": lora, "images": learnt, "held_images": held, "save_to": refined}
    points = {"size": bench.image_size, "timesteps": 1000, "no_mirror": True}
    steps = {"steps": REFINE_STEPS, "batch_size": 1, "torch_dtype": "bf16", "device": bench.options.device}
    job = bench.on_pair("refine", inputs=(lora,), outputs=(refined,), **files, **points, **steps)
    return {"runs": bench.side_by_side({"refine": job}, repeats=1), "size": bench.image_size, "steps": REFINE_STEPS}


def _least_work(bench: Bench) -> dict[str, Any]:
    """Return the least number of operations of extract.

    These are four block Krylov rounds in both directions, in their dtype, and in fp32 the last product and the product
    of the factors, which measures the error.
    """
    rounds = fp32 = 0
    for shape in _matrices(bench).values():
        rows, columns = matrix_shape(shape)
        rank = min(RANK if len(shape) == 2 else CONV_RANK, rows, columns)
        rounds += 2 * rows * columns * 8 * max(rank, SMALLEST_BLOCK)
        fp32 += 2 * rows * columns * 2 * rank
    dtype = "bf16" if multiplies_bf16(torch.device(bench.options.device)) else "fp32"
    return {"rounds_flop": rounds, "rounds_dtype": dtype, "fp32_flop": fp32}


def _errors(bench: Bench, path: Path) -> dict[str, Any]:
    """Return the errors of a file's modules, and of all together: largest and mean ratio to the optimum."""
    settings = {**bench.files, "lora": str(path), "per_shape": bench.options.error_layers}
    return bench.run(Job(function=jobs.factors, settings=settings)).result


def _matrices(bench: Bench) -> dict[str, tuple[int, ...]]:
    """Return key -> shape of every matrix that extract decomposes."""
    with open_checkpoint(bench.pair.base) as checkpoint:
        shapes = {key: spec.shape for key, spec in checkpoint.specs.items() if key.startswith(DENOISER_PREFIX)}
    return {key: shape for key, shape in shapes.items() if has_matrix_view(shape)}
