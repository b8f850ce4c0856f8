"""Let the factors of a LoRA learn the tuned model's own outputs: the verb `refine`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from lbm_lora.adapter import Adapter, AdapterMetadata, load_adapter, precision, save_adapter
from lbm_lora.apply import check_base, check_fit
from lbm_lora.atomic import guard_output
from lbm_lora.checkpoint import dtype_name, dtype_of, fingerprint, open_checkpoint
from lbm_lora.errors import ConfigError, OutputError, WrongBaseError
from lbm_lora.progress import SILENT, Progress
from lbm_lora.workflows.extras import need_packages

if TYPE_CHECKING:
    from lbm_lora.model.build import LBMModel
    from lbm_lora.train.refine import Refined
    from lbm_lora.train.student import Errors, Lesson

_PACKAGES = ("peft", "diffusers", "PIL")
_HELD_SHARE = 8  # one picture in so many is measured on
_HELD_MOST = 16


@dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """Let a LoRA learn the tuned model's own outputs on pictures, at the ranks that it has; the better one is kept."""

    base_model_path: Path
    """Checkpoint that the LoRA was made for."""
    tuned_model_path: Path
    """The fine-tuned checkpoint whose outputs it is to give back."""
    lora_path: Path
    """The LoRA to refine; the best start is a calibrated extraction."""
    images: str
    """Picture folder or quoted glob ('pairs/*.source.png'): sources of the kind that the model is used on, the more
    the better."""
    save_to: Path
    """Where to write the refined LoRA: a .safetensors file."""
    held_images: str | None = None
    """Other pictures to measure on. Default: one in 8 of the images, up to 16, which are not learnt from then."""
    steps: int = 200
    """Optimizer steps."""
    batch_size: int = 16
    """Points of the bridge in each step. They go through the network together: 1 or 2 for the full-size model."""
    learning_rate: float = 0.04
    """Of each tensor, relative to the root mean square of its values times the error of the given LoRA."""
    mirror: bool = True
    """Learn from mirrored pictures too."""
    size: int | None = None
    """Square root of the pixel budget (1024: about one megapixel). Default: the model's own."""
    timesteps: tuple[float, ...] = ()
    """Only these of the trained timesteps. Default: all of them, drawn by their probability."""
    seed: int = 0
    """Of bridge noise and order."""
    save_precision: Literal["float", "fp16", "bf16", "int8"] | None = None
    """Precision of the file. Default: that of the given LoRA."""
    device: str = "auto"
    """auto (CUDA where there is one, else the CPU), cpu, cuda or cuda:N."""
    torch_dtype: Literal["float", "bf16"] = "float"
    """Precision that the networks run in; bf16 cannot see errors below about 1 %."""
    config_path: Path | None = None
    """LBM's config.yaml, for checkpoints that have none beside them or in them."""


@dataclass(frozen=True, kw_only=True)
class RefineResult:
    """The file that was written, and the errors of the denoiser's output before and after."""

    adapter: Path
    nbytes: int
    before: "Errors"
    after: "Errors"
    gain: float
    """dB that the typical error became smaller."""
    step: int
    """After which the kept LoRA was measured; 0: none was better than the given one, which was written."""
    steps: int
    images: int
    """Pictures that were learnt from."""
    held: int
    """Pictures that were measured on."""


def run(config: RefineConfig, progress: Progress = SILENT) -> RefineResult:
    """Refine. A run that was stopped goes on where it was last measured; its state is beside the output.

    Raises:
        MissingExtraError: a package of the train extra is not installed.
        InputError: of the kind that fits, before a model is loaded.
        QualityError: the loss is no number any more.
    """
    need_packages("refining", _PACKAGES, "train")
    learnt, held = _pictures(config)
    _check(config, [*learnt, *held])
    adapter, identity = _read(config, [*learnt, *held])
    dtype = precision(config.save_precision) if config.save_precision else _stored_dtype(adapter)
    lessons, exam = _lessons(config, learnt, held, progress)
    refined = _refine(config, adapter, dtype, lessons, exam, identity, progress)
    return RefineResult(
        adapter=config.save_to,
        nbytes=config.save_to.stat().st_size,
        before=refined.before,
        after=refined.after,
        gain=refined.gain,
        step=refined.step,
        steps=config.steps,
        images=len(learnt),
        held=len(held),
    )


def _pictures(config: RefineConfig) -> tuple[list[Path], list[Path]]:
    """Those to learn from, and those to measure on.

    Raises:
        ConfigError: one is in both, or there is one only.
        ImageError: none are there.
    """
    # only this needs the network classes
    from lbm_lora.imaging.paths import expand_sources

    found = list(expand_sources(config.images))
    if config.held_images is not None:
        held = list(expand_sources(config.held_images))
        both = sorted({path.resolve() for path in found} & {path.resolve() for path in held})
        if both:
            raise ConfigError(f"{both[0]} is in --images and in --held_images: measure on pictures not learnt from.")
        return found, held
    if len(found) < 2:
        raise ConfigError(f"--images {config.images} is one picture. Give two or more, or --held_images to measure on.")
    count = min(_HELD_MOST, max(1, len(found) // _HELD_SHARE))
    chosen = {index * len(found) // count for index in range(count)}
    return (
        [path for index, path in enumerate(found) if index not in chosen],
        [path for index, path in enumerate(found) if index in chosen],
    )


def _check(config: RefineConfig, pictures: Sequence[Path]) -> None:
    for name in ("steps", "batch_size"):
        if getattr(config, name) < 1:
            raise ConfigError(f"--{name} is {getattr(config, name)}: give 1 or more.")
    if not 0 < config.learning_rate <= 1:
        raise ConfigError(f"--learning_rate is {config.learning_rate:g}: it is relative, give a share up to 1.")
    if config.save_to.suffix != ".safetensors":
        raise OutputError(f"--save_to {config.save_to}: a LoRA is a .safetensors file.")
    guard_output(config.save_to, [config.base_model_path, config.tuned_model_path, config.lora_path, *pictures])


def _read(config: RefineConfig, pictures: Sequence[Path]) -> tuple[Adapter, dict[str, Any]]:
    """The LoRA, checked against base and tuned model, and what must be the same for a stopped run to go on."""
    from lbm_lora.calibrate.states import digest_of

    adapter = load_adapter(config.lora_path)
    with open_checkpoint(config.base_model_path) as base, open_checkpoint(config.tuned_model_path) as tuned:
        component = base.component()
        check_fit(adapter, {name: spec.shape for name, spec in component.specs.items()})
        before, after = fingerprint(component), fingerprint(tuned.component())
        check_base(adapter, component, found=before)
    if adapter.metadata.tuned_fingerprint not in ("", after.digest):
        raise WrongBaseError(
            f"{config.lora_path} was extracted from another tuned model than {config.tuned_model_path}. Give its own."
        )
    with open_checkpoint(config.lora_path) as file:
        lora = fingerprint(file.component(""))
    settings = {key: value for key, value in asdict(config).items() if not isinstance(value, Path)}
    del settings["images"], settings["held_images"]
    inputs = {"base": before.digest, "tuned": after.digest, "lora": lora.digest, "pictures": digest_of(pictures)}
    return adapter, json.loads(json.dumps({**settings, **inputs}))


def _lessons(
    config: RefineConfig, learnt: Sequence[Path], held: Sequence[Path], progress: Progress
) -> tuple[list["Lesson"], list["Lesson"]]:
    """What the tuned model says, to learn and to measure on. The model is let go of afterwards."""
    model = _load(config, config.tuned_model_path, progress, "loading the tuned model")
    views = [(path, mirrored) for path in learnt for mirrored in ((False, True) if config.mirror else (False,))]
    views += [(path, False) for path in held]
    progress.start(len(views), "running the tuned model")
    asked: list[list[Lesson]] = []
    for index, (path, mirrored) in enumerate(views):
        asked.append(_lessons_of(config, model, path, mirrored, index))
        progress.advance()
    first = len(views) - len(held)
    return [one for of in asked[:first] for one in of], [one for of in asked[first:] for one in of]


@torch.no_grad()
def _lessons_of(config: RefineConfig, model: "LBMModel", path: Path, mirrored: bool, index: int) -> list["Lesson"]:
    from lbm_lora.calibrate import schedule_of
    from lbm_lora.calibrate.states import bridge_states, source_latent
    from lbm_lora.train.student import Lesson

    schedule = schedule_of(model.config, config.timesteps)
    source = source_latent(model, path, size=config.size, mirrored=mirrored)
    timesteps, probabilities, states = zip(
        *bridge_states(model, source, schedule, seed=config.seed, image=index), strict=True
    )
    wanted = model.denoise(torch.cat(states), torch.tensor(timesteps, dtype=torch.float32)).float().cpu()
    return [
        Lesson(timestep=timestep, probability=probability, state=state.float().cpu(), wanted=output[None])
        for timestep, probability, state, output in zip(timesteps, probabilities, states, wanted, strict=True)
    ]


def _refine(
    config: RefineConfig,
    adapter: Adapter,
    dtype: torch.dtype,
    lessons: Sequence["Lesson"],
    exam: Sequence["Lesson"],
    identity: Mapping[str, Any],
    progress: Progress,
) -> "Refined":
    from lbm_lora.train.refine import RefineSettings, refine
    from lbm_lora.train.student import Student

    def keep(made: Adapter, refined: "Refined") -> None:
        save_adapter(replace(made, metadata=_metadata(config, adapter, dtype, refined)), config.save_to)

    model = _load(config, config.base_model_path, progress, "loading the base")
    state = config.save_to.with_name(f"{config.save_to.stem}.refine.pt")
    refined = refine(
        Student(model, adapter, dtype),
        lessons,
        exam,
        RefineSettings(
            steps=config.steps,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            seed=config.seed,
        ),
        keep=keep,
        state=state,
        identity={**identity, "dtype": dtype_name(dtype)},
        progress=progress,
    )
    state.unlink(missing_ok=True)
    return refined


def _load(config: RefineConfig, path: Path, progress: Progress, what: str) -> "LBMModel":
    from lbm_lora.model.build import load_model

    progress.start(0, what)
    return load_model(path, config_path=config.config_path, device=config.device, dtype=dtype_of(config.torch_dtype))


def _stored_dtype(adapter: Adapter) -> torch.dtype:
    if adapter.dtype is not None:
        return adapter.dtype
    tensors = [*(module.up for module in adapter.modules.values()), *adapter.dense.values()]
    return tensors[0].dtype


def _metadata(config: RefineConfig, given: Adapter, dtype: torch.dtype, refined: "Refined") -> AdapterMetadata:
    """That of the given LoRA, with its errors in the weights, which are others now, replaced by those of outputs."""
    facts = {
        "step": refined.step,
        "steps": config.steps,
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "seed": config.seed,
        "mirror": config.mirror,
        "dtype": dtype_name(dtype),
        "lora": config.lora_path.name,
        "error_before": _short(refined.before.typical),
        "error_after": _short(refined.after.typical),
        "worst_error_before": _short(refined.before.worst),
        "worst_error_after": _short(refined.after.worst),
    }
    kept = {key: value for key, value in given.metadata.facts.items() if key != "lbm_lora_errors"}
    kept["lbm_lora_refinement"] = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return replace(given.metadata, facts=kept)


def _short(error: float) -> float:
    return float(f"{error:.6g}")
