"""Train the factors of a LoRA on the tuned model's own outputs: the verb `refine`."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from lbm_lora.errors import ConfigError, Option, QualityError, need_packages
from lbm_lora.progress import SILENT, Progress
from lbm_lora.verbs.options import (
    ADVANCED,
    Also,
    Base,
    Batch,
    ConfigPath,
    Count,
    Device,
    FloatOrBf16,
    Images,
    Lora,
    LoraAlphaIs,
    LoraPrecision,
    Output,
    Overwrite,
    Seed,
    Timesteps,
    Tuned,
    WorkSize,
)
from lbm_lora.verbs.verb import verb

if TYPE_CHECKING:
    import torch

    from lbm_lora.adapter import Adapter
    from lbm_lora.adapter.twins import Twin
    from lbm_lora.checkpoint import Checkpoint
    from lbm_lora.fidelity.output_errors import OutputErrors
    from lbm_lora.model.build import LBMModel
    from lbm_lora.refinement.distill import DistillResult
    from lbm_lora.refinement.images import ImageSplit
    from lbm_lora.refinement.record import RefineSettings
    from lbm_lora.verbs.adapters import RefinedAdapter

_STEPS = {"adam": 200, "joint": 6}


@dataclass(frozen=True, kw_only=True)
class RefineResult:
    """Written file, and the errors of the denoiser's output before and after."""

    adapter: Path
    nbytes: int
    before: "OutputErrors"
    after: "OutputErrors"
    gain: float
    """Decrease of the typical error in dB."""
    step: int
    """Step of the kept LoRA; 0: none was better than the given one, which was written."""
    steps: int
    images: int
    """Images that were trained on."""
    held: int
    """Images that were measured on."""
    twins: "tuple[Twin, ...]" = ()
    """The LoRA in other formats."""


def _text(result: RefineResult, _: bool) -> str:
    """Return the errors of the denoiser's output before and after."""
    from lbm_lora.report.wording import percent, plural
    from lbm_lora.verbs.lines import file_lines, paragraphs, twin_files

    before, after = result.before, result.after
    kept = (
        f"{result.gain:.1f} dB better, of step {result.step:,} of {result.steps:,}"
        if result.step
        else "no step was better, so the given LoRA is kept"
    )
    measured = (
        f"Error of the denoiser's output on {plural(result.held, 'other image')}: typical {percent(before.typical)} -> "
        f"{percent(after.typical)}, worst {percent(before.worst)} -> {percent(after.worst)}; {kept}."
    )
    return paragraphs(
        f"Learnt from {plural(result.images, 'image')}.",
        measured,
        file_lines(result.adapter, *twin_files(result.twins)),
    )


@verb(
    "train a LoRA on the tuned model's own outputs on images",
    examples=(
        "lbm-lora refine --base_model_path base.safetensors --tuned_model_path tuned.safetensors --lora_path "
        "lora.safetensors --images photos --save_to refined.safetensors --steps 400",
    ),
    text=_text,
)
def refine(
    base: Base,
    tuned: Tuned,
    lora: Lora,
    images: Images,
    *,
    overwrite: Overwrite = False,
    save_to: Output = None,
    held_images: Images | None = None,
    method: Literal["adam", "joint"] = "adam",
    steps: Count | None = None,
    batch_size: Batch = 16,
    size: WorkSize = None,
    device: Device = "auto",
    learning_rate: Annotated[float, ADVANCED] = 0.04,
    mirror: Annotated[bool, ADVANCED] = True,
    timesteps: Timesteps = (),
    seed: Annotated[Seed, ADVANCED] = 0,
    save_precision: Annotated[LoraPrecision, ADVANCED] = None,
    also: Also = (),
    torch_dtype: Annotated[FloatOrBf16, ADVANCED] = "float",
    lora_alpha_is: LoraAlphaIs = "auto",
    config_path: ConfigPath = None,
    progress: Progress = SILENT,
) -> "tuple[RefinedAdapter, RefineResult]":
    """Train a LoRA on the tuned model's own outputs on images, keeping its ranks; the better one is kept.

    Args:
        base: Checkpoint that the LoRA was made for.
        tuned: The fine-tuned checkpoint whose outputs the LoRA is trained on.
        lora: The LoRA to refine: a file, or user/repo on the hub. The best start is a calibrated extraction.
        images: Source images of the kind that the model is used on; more are better: a folder or a quoted glob
            ('pairs/*.source.png').
        save_to: Write the refined LoRA here: a .safetensors file.
        held_images: Measure on these held-out images. Default: one in 8 of `images`, up to 16, which are then not
            trained on.
        method: Train everything with Adam (adam), or fit only biases, norms and one factor per rank together, in a
            few steps of Gauss and Newton (joint): quicker, with less gain, and nothing to install.
        steps: Steps of the method. Default: 200 of Adam, at most 6 of the joint fit.
        batch_size: Points of the bridge per step. They pass through the network together: use 1 or 2 for the
            full-size model.
        learning_rate: Learning rate of Adam, relative to the root mean square of each tensor's values times the error
            of the given LoRA.
        mirror: Also train on mirrored images.
        timesteps: Train only at these of the trained timesteps. Default: all of them, drawn by their probability.
        seed: Seed for the bridge noise and the order of the images.
        save_precision: Store the LoRA in this precision. Default: that of the given LoRA.
        torch_dtype: Run the networks in this precision. bf16 cannot see errors below about 1 %.
        lora_alpha_is: Meaning of alpha in the LoRA file: rank ignores it (scaling 1), file uses it. auto: rank for
            files of the earlier implementation, else file.
        config_path: Read LBM's config.yaml from here, for checkpoints that have none in them or next to them.

    Returns:
        The refined LoRA, with its `outcome`.

    Raises:
        MissingExtraError: a package of the train extra is not installed.
        InputError: invalid input of any kind, before a model is loaded.
        QualityError: the loss is no longer finite.
    """
    if method == "adam":
        need_packages("refining", ("peft",), "train")
    if not 0 < learning_rate <= 1:
        raise ConfigError(
            Option("learning_rate"), f" is {learning_rate:g}, but it is relative: give a value above 0, up to 1."
        )
    from lbm_lora.adapter import load_adapter, precision, save_adapter
    from lbm_lora.adapter.twins import check_form, plan_twins, write_twins
    from lbm_lora.apply import adapted_to_lbm
    from lbm_lora.files import Outputs, together, written_bytes
    from lbm_lora.imaging.digests import digests_of
    from lbm_lora.refinement.images import split_images
    from lbm_lora.refinement.record import RefineSettings, identity_of, metadata_of
    from lbm_lora.verbs.adapters import RefinedAdapter, contents
    from lbm_lora.verbs.values import adapter_of, image_files, inputs, listed, opened_pair, path_of, several

    settings = RefineSettings(
        method=method,
        steps=steps or _STEPS[method],
        batch_size=batch_size,
        size=size,
        device=device,
        learning_rate=learning_rate,
        mirror=mirror,
        timesteps=several(timesteps),
        seed=seed,
        torch_dtype=str(torch_dtype),
        lora_alpha_is=lora_alpha_is,
        config_path=None if config_path is None else Path(config_path),
    )
    (local,) = listed(lora)
    path = None if save_to is None else Path(save_to)
    state = None  # file to which the run is saved until its end, to be resumed; a joint fit takes few steps
    with ExitStack() as stack:
        sources = stack.enter_context(image_files(images))
        held = None if held_images is None else stack.enter_context(image_files(held_images))
        split = split_images(sources, held)
        if path is not None:
            check_form(path)
            outputs = Outputs(overwrite=overwrite)
            outputs.reads(*inputs(base, tuned, local), settings.config_path, *split.all).writes(path)
            if method == "adam":
                state = path.with_name(f"{path.stem}.refine.pt")
                outputs.writes(state, "the state of the run")
            plan_twins(outputs, [path], several(also))
            outputs.check()
        pair = opened_pair(stack, base, tuned)
        component = pair[0].component()
        adapter = adapted_to_lbm(adapter_of(local, lora_alpha_is, component), component.shapes).adapter
        digests = digests_of(split.all)
        dtype = precision(str(save_precision)) if save_precision else _stored_dtype(adapter, method)
        identity = identity_of(settings, *pair, adapter, dtype, digests.each, len(split.learnt))
        try:
            made, outcome = _distill(settings, *pair, adapter, dtype, split, identity, state, overwrite, progress)
        except QualityError:
            if state is not None:
                state.unlink(missing_ok=True)  # the run would fail again
            raise
        learnt = digests.each[: len(split.learnt)]
        name = path_of(local, "LoRA").name
        made = replace(made, metadata=metadata_of(settings, adapter, name, dtype, learnt, outcome))
        twins: tuple[Twin, ...] = ()
        if path is not None:
            with together():
                save_adapter(made, path)
                twins = write_twins(path, several(also), progress)
            made = load_adapter(path)
        if state is not None:
            state.unlink(missing_ok=True)
    return RefinedAdapter(**contents(made), outcome=outcome), RefineResult(
        adapter=path or Path("LoRA.safetensors"),
        nbytes=0 if path is None else written_bytes(path),
        before=outcome.before,
        after=outcome.after,
        gain=outcome.gain,
        step=outcome.step,
        steps=settings.steps,
        images=len(split.learnt),
        held=len(split.held),
        twins=twins,
    )


def _stored_dtype(adapter: "Adapter", method: str) -> "torch.dtype":
    import torch

    from lbm_lora.factorize import PACKED

    if adapter.dtype == PACKED and method == "adam":  # trained factors have no bits yet
        return torch.float16
    if adapter.dtype is not None:
        return adapter.dtype
    tensors = [*(module.up for module in adapter.modules.values()), *adapter.dense.values()]
    return tensors[0].dtype


def _distill(
    settings: "RefineSettings",
    base: "Checkpoint",
    tuned: "Checkpoint",
    adapter: "Adapter",
    dtype: "torch.dtype",
    images: "ImageSplit",
    identity: Mapping[str, Any],
    state: Path | None,
    overwrite: bool,
    progress: Progress,
) -> "tuple[Adapter, DistillResult]":
    """Get the tuned model's answers, release it, and refine the LoRA on the base."""
    from lbm_lora.refinement.distill import DistillResult, DistillSettings, distill, refuse_another
    from lbm_lora.refinement.images import answered_images
    from lbm_lora.refinement.joint import JointSettings
    from lbm_lora.refinement.joint import refit_points

    if state is not None and not overwrite:
        refuse_another(state, identity)
    learnt, held = answered_images(
        _load(settings, tuned, progress, "loading the tuned model"),
        images,
        timesteps=settings.timesteps,
        size=settings.size,
        seed=settings.seed,
        mirror=settings.mirror,
        progress=progress,
    )
    model = _load(settings, base, progress, "loading the base")
    if settings.method == "joint":
        fit = refit_points(
            model,
            adapter,
            learnt,
            held,
            JointSettings(steps=settings.steps, seed=settings.seed),
            dtype=dtype,
            points=settings.batch_size,
            progress=progress,
        )
        return fit.adapter, DistillResult(before=fit.before, after=fit.after, step=fit.step)
    from lbm_lora.refinement.student import Student  # needs peft

    distilled = DistillSettings(
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
    )
    student = Student(model, adapter, dtype)
    return distill(student, learnt, held, distilled, state=state, identity=identity, progress=progress)


def _load(settings: "RefineSettings", checkpoint: "Checkpoint", progress: Progress, what: str) -> "LBMModel":
    from lbm_lora.checkpoint import dtype_of
    from lbm_lora.model.build import load_model

    progress.start(0, what)
    dtype = dtype_of(settings.torch_dtype)
    return load_model(checkpoint, config_path=settings.config_path, device=settings.device, dtype=dtype)
