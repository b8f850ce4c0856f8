"""Output-aware extraction end to end: statistics of the tuned model, then ranks under a size."""

from typing import Any

from benchmarks.bench import REDUCED, Bench
from lbm_lora.bundled import PHOTOS

TIMESTEP = 1000
SHARE = 0.0365  # of the checkpoint: the size of a rank 32/16 LoRA


def calibrated(bench: Bench) -> dict[str, Any]:
    """calibrate on one picture at one timestep, and extract with its statistics, each measured once."""
    bench.room(1.2, "statistics and vectors")
    statistics, lora = bench.path("statistics.safetensors"), bench.path("calibrated.safetensors")
    image = sorted(PHOTOS.glob("*.jpg"))[0]
    size = 256 if bench.options.scale >= REDUCED else 64
    max_size = f"{round(SHARE * bench.pair.nbytes / 1e6)}MB"
    flags = {
        "tuned_model_path": bench.pair.tuned,
        "images": image,
        "size": size,
        "timesteps": TIMESTEP,
        "probes": 1,
        "save_to": statistics,
        "device": bench.options.device,
    }
    measure = bench.command("calibrate", flags, inputs=(bench.pair.tuned,), outputs=(statistics,))
    made = bench.side_by_side({"calibrate": measure}, repeats=1)
    nbytes = statistics.stat().st_size
    flags = {
        "base_model_path": bench.pair.base,
        "tuned_model_path": bench.pair.tuned,
        "calibration": statistics,
        "max_size": max_size,
        "save_to": lora,
        "device": bench.options.device,
    }
    inputs = (*bench.both, statistics)
    sidecar = lora.with_name("calibrated_config.yaml")
    extract = bench.command("extract", flags, inputs=inputs, outputs=(lora, sidecar))
    made |= bench.side_by_side({"extract --calibration": extract}, repeats=1)
    bench.drop(statistics, lora, sidecar)
    return {
        "runs": made,
        "images": 1,
        "size": size,
        "timestep": TIMESTEP,
        "max_size": max_size,
        "statistics_bytes": nbytes,
    }
