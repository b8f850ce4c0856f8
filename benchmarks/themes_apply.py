"""What is done with bases and LoRAs, beside copies, the bare pass and raw calls of the network."""

import statistics
from pathlib import Path
from typing import Any

from benchmarks.bench import REDUCED, Bench, Job, ratios, say
from benchmarks.machine import memory
from benchmarks.pair import make_backbone, make_pair
from lbm_lora.model.write_base import twin_paths

LIVE_RANKS = (4, 8, 16, 32, 64, 128)


def machine_limits(bench: Bench) -> dict[str, Any]:
    run = bench.run(Job(name="limits", settings={"folder": str(bench.options.work)}))
    return {"limits": {key: round(value, 3) for key, value in run.result.items()}}


def base(bench: Bench) -> dict[str, Any]:
    """base of a full-size backbone in fp32 beside copying the base's bytes twice."""
    backbone = make_backbone(bench.options.work / f"backbone-{bench.options.scale:g}", scale=bench.options.scale)
    bench.room(2, "the twins of a base")
    files = tuple(sorted(backbone.glob("*/*.safetensors")))
    twins = twin_paths(bench.path("exact_base.safetensors"))
    config = _lbm_yaml(bench)
    flags = {"config_path": config, "backbone_signature": backbone, "save_path": twins[0]}
    copies = [bench.path("copy_1.bin"), bench.path("copy_2.bin")]
    runs: dict[str, Any] = {}
    copy = {"source": str(bench.pair.base), "targets": [str(path) for path in copies]}
    runs |= bench.side_by_side(
        {"copy": Job(name="copy", settings=copy, inputs=(bench.pair.base,), outputs=copies)}, repeats=1
    )
    bench.drop(*copies)
    runs |= bench.side_by_side({"base": bench.command("base", flags, inputs=files, outputs=twins)}, repeats=1)
    bench.drop(*twins)
    return {"runs": runs, "ratios": ratios(runs["base"], runs["copy"])}


def fuse(bench: Bench) -> dict[str, Any]:
    """fuse into a checkpoint beside copying it."""
    lora = bench.adapter
    bench.room(2, "a fused checkpoint and a copy")
    output, target = bench.path("fused.safetensors"), bench.path("copy.bin")
    flags = {"base_model_path": bench.pair.base, "lora_path": lora, "save_to": output}
    copy = {"source": str(bench.pair.base), "targets": [str(target)]}
    runs = bench.side_by_side(
        {
            "copy": Job(name="copy", settings=copy, inputs=(bench.pair.base,), outputs=(target,)),
            "fuse": bench.command("fuse", flags, inputs=(bench.pair.base, lora), outputs=(output,)),
        }
    )
    bench.drop(output, target)
    return {"runs": runs, "ratios": ratios(runs["fuse"], runs["copy"])}


def validate(bench: Bench) -> dict[str, Any]:
    """validate (weights) beside the bare pass."""
    lora = bench.adapter
    flags = {"base_model_path": bench.pair.base, "tuned_model_path": bench.pair.tuned, "lora_path": lora}
    flags |= {"report": bench.path("report")}
    runs = bench.side_by_side(
        {
            "bare pass": bench.bare_pass(),
            "bare pass by tensor": bench.bare_pass(blocked=False),
            "validate": bench.command("validate", flags, inputs=(*bench.both, lora)),
        }
    )
    references = ("bare pass", "bare pass by tensor")
    return {"runs": runs, "ratios": {name: ratios(runs["validate"], runs[name]) for name in references}}


def load(bench: Bench) -> dict[str, Any]:
    """File to ready model, in the file's dtype."""
    settings = {"path": str(bench.pair.tuned), "dtype": "bf16"}
    job = Job(name="load", settings=settings, inputs=(bench.pair.tuned,))
    runs = bench.side_by_side({"load": job})
    results = [run["result"] for run in runs["load"]["runs"]]
    return {
        "runs": runs,
        "file_bytes": bench.pair.nbytes,
        **{key: statistics.median(result[key] for result in results) for key in results[0]},
    }


def infer(bench: Bench) -> dict[str, Any]:
    """One step with a fused LoRA beside the raw call of the network, bf16."""
    lora = bench.adapter
    needed = 2.5 * bench.pair.nbytes
    if memory()["MemTotal"] and memory()["MemAvailable"] < needed:
        free = memory()["MemAvailable"]
        return {"missing": f"needs {needed / 1e9:.0f} GB of memory, {free / 1e9:.0f} GB are free"}
    size = 512 if bench.options.scale >= REDUCED else 128
    settings = {"base": str(bench.pair.base), "adapter": str(lora), "size": size, "dtype": "bf16", "vae": True}
    job = Job(name="infer", settings={**settings, "device": bench.options.device}, inputs=(bench.pair.base, lora))
    run = bench.run(job)
    say("infer", run)
    raw = sum(run.result["raw_s"]) / len(run.result["raw_s"])
    return {
        **run.result,
        "size": size,
        "anon_bytes": run.anon_bytes,
        "ratios": {"fused": run.result["fused_s"] / raw, "live": run.result["live_s"] / raw},
    }


def live(bench: Bench) -> dict[str, Any]:
    """The overhead of a live LoRA against its rank, on a narrower network."""
    scale = min(REDUCED, bench.options.scale)
    pair = make_pair(bench.options.work / f"pair-{scale:g}", scale=scale, seed=bench.options.seed)
    size = 256 if scale == REDUCED else 128
    settings = {"base": str(pair.base), "ranks": list(LIVE_RANKS), "size": size, "dtype": "bf16", "repeats": 3}
    run = bench.run(Job(name="live", settings={**settings, "device": bench.options.device}, inputs=(pair.base,)))
    say("live", run)
    overhead = {rank: seconds / run.result["raw_s"] - 1 for rank, seconds in run.result["live_s"].items()}
    return {**run.result, "overhead": overhead, "scale": scale, "size": size}


def _lbm_yaml(bench: Bench) -> Path:
    """A config.yaml with the sections of the pair's networks."""
    import yaml

    from benchmarks.sizes import lbm_config

    path = bench.path("config.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    config = lbm_config(bench.options.scale).model_dump(mode="json")
    path.write_text(yaml.safe_dump(config))
    return path
