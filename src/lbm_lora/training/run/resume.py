"""Where a run goes on: the state that it resumes from, and what must not have changed since.

A run without a state may start in a folder that holds nothing of another run: the two would mix their files.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from lbm_lora.adapter.adapter_file import lora_digest
from lbm_lora.errors import ConfigError, listing
from lbm_lora.progress import Progress
from lbm_lora.regular_file import file_digest, is_same
from lbm_lora.trainable.state import TrainState, changed_keys, check_identity, load_state
from lbm_lora.training.data.index import PairIndex
from lbm_lora.training.run.run_folder import RunFolder
from lbm_lora.training.run.trainee import has_settings, is_save_of, part_digest, trained_steps
from lbm_lora.training.settings.train_config import TrainConfig

_SAME = (
    "mode", "lora_rank", "lora_conv_rank", "lora_alpha", "lora_conv_alpha", "lora_target_modules", "rank_pattern",
    "alpha_pattern", "trainable_lora_modules", "train_biases", "train_norms", "use_rslora", "init_lora", "optimizer",
    "seed", "accumulate", "image_size", "image_size_prob", "aspect_buckets", "shuffle",
)  # fmt: skip
"""Keys that must not change when a run resumes: what is trained, and the order of the data."""
_FREE = ("save_ckpt_path", "resume", "device", "devices", "num_nodes", "batch_size", "num_workers")
"""Keys whose changes are not reported."""
_MEASURED = {
    "best_metric", "validation_shards", "validation_folder", "validation_samples", "num_steps", "lpips_net",
    "lpips_weights", "source_key", "target_key", "mask_key", "latent_loss_type", "latent_loss_weight",
    "pixel_loss_type", "pixel_loss_weight", "pixel_loss_max_size", "timestep_sampling", "selected_timesteps", "prob",
    "logit_mean", "logit_std", "bridge_noise_sigma",
}  # fmt: skip
"""Keys that scores depend on, besides those that must not change."""


def find_state(config: TrainConfig, folder: RunFolder) -> TrainState | None:
    """Return the state to resume from; None for a new run.

    Raises:
        ConfigError: the folder holds another run, or the state is damaged.
    """
    if config.resume == "never":
        folder.refuse_results()
        return None
    if config.resume != "auto" and not is_same(folder.state, Path(config.resume)):
        return _from_another_folder(config, folder)
    if folder.state.exists():
        state = load_state(folder.state)
        _refuse_later(state, config, folder)
        return state
    _refuse_another(folder)
    return None


def _refuse_later(state: TrainState, config: TrainConfig, folder: RunFolder) -> None:
    """Refuse what the run would write over: results of later steps than the state's, which is an old copy, and others.

    A run without a validation writes no best result.

    Raises:
        ConfigError: names them.
    """
    named = {path: int(path.stem.removeprefix("step-")) for path in (*folder.step_files(), *folder.grids())}
    written = (folder.last, folder.best) if config.has_validation else (folder.last,)
    held = {path: trained_steps(path) for path in written if path.exists()}
    later = [path.name for path, step in (named | held).items() if step is not None and step > state.step]
    if later:
        raise ConfigError(
            f"{folder.state} is of step {state.step:,}, but {folder.path} holds results of later steps, which would be "
            f"replaced: {listing(later, limit=8)}. Put the newest resume.pt back, or move them away."
        )
    known = {folder.last: state.results.get(max(state.results, default=-1)), folder.best: state.best_result}
    others = [path for path in held if not _is_of(path, state, known[path])]
    again = folder.step_file(state.step)
    if was_cut_off(state, folder) and again.exists() and not _is_of(again, state, state.results.get(state.step)):
        others.append(again)
    if others:
        raise ConfigError(
            f"{others[0]} is not a result of the run whose state is {folder.state}, and would be replaced. "
            "Move it away."
        )


def _is_of(path: Path, state: TrainState, digest: str | None) -> bool:
    """Return whether a file is of the run of a state: a result of its step, or the one that it knows by its digest."""
    return _is_own(path, state) or file_digest(path) == digest


def _is_own(path: Path, state: TrainState) -> bool:
    return is_save_of(path, state.config, state.step, state.part)


def results_of(state: TrainState, folder: RunFolder) -> dict[int, str]:
    """Return the digests of a run's results by step, with that of the state's own step, if it is there.

    Its file may have been deleted: `last` has the same bytes.
    """
    for path in (folder.step_file(state.step), folder.last):
        digest = own_digest(path, state.config, state.step, state.part)
        if digest is not None:
            return state.results | {state.step: digest}
    return dict(state.results)


def best_result_of(state: TrainState, config: TrainConfig, folder: RunFolder) -> str | None:
    """Return the digest of a run's best result: the one that the state knows, or one of its step that came after it.

    Without a validation a file of that name is the user's own choice.
    """
    own = own_digest(folder.best, state.config, state.step, state.part) if config.has_validation else None
    return state.best_result if own is None else own


def own_digest(path: Path, values: Mapping[str, object], step: int, part: str) -> str | None:
    """Return the digest of the file that a run has saved after a step; None if another one is there by now.

    Args:
        values, part: see `is_save_of`.
    """
    with suppress(FileNotFoundError):  # somebody has moved it away just now
        return file_digest(path) if path.exists() and is_save_of(path, values, step, part) else None
    return None


def _from_another_folder(config: TrainConfig, folder: RunFolder) -> TrainState:
    """Return a state to continue in a new folder: results in the old folder no longer belong to the run.

    Raises:
        ConfigError: the folder holds another run.
    """
    if folder.state.exists():
        own = load_state(folder.state)
        if own.config.get("resume") == str(config.resume):  # the same command was run before
            _refuse_later(own, config, folder)
            return own
        raise ConfigError(
            f"{folder.path} holds a run with a state of its own, and resume names {config.resume}. Set resume to auto "
            "to go on with the run in the folder, or choose another save_ckpt_path."
        )
    _refuse_another(folder)
    state = load_state(Path(config.resume))
    part = part_digest(config, {"begins with": state.part, "step": state.step})
    return replace(state, saved_steps=(), best=None, best_step=None, validated=-1, part=part, earlier_parts={})


def _refuse_another(folder: RunFolder) -> None:
    """Refuse results and pictures of a run without its state; a run saves its state before the first of them.

    Raises:
        ConfigError: there are some.
    """
    there = [*folder.results(), *folder.grids()]
    if there:
        raise ConfigError(
            f"{folder.path} holds {listing((path.name for path in there), limit=3)} of a run, but no "
            f"{folder.state.name}: a new run would overwrite them. Choose another save_ckpt_path, move that run away, "
            "or continue its LoRA with lora_weights_path."
        )


def state_file(config: TrainConfig) -> Path:
    """Return the file of the state that a run resumes from."""
    return RunFolder(config.save_ckpt_path).state if config.resume in ("auto", "never") else Path(config.resume)


def was_cut_off(state: TrainState | None, folder: RunFolder) -> bool:
    """Return whether a run was killed after it had saved its state, and before the result of the state's step."""
    if state is None or not state.step or not folder.state.exists():  # or it is the state of another folder
        return False  # a run saves no result before its first step
    is_there = folder.last.exists() and trained_steps(folder.last) == state.step
    return state.step not in state.saved_steps or not is_there


def has_unscored_best(state: TrainState, folder: RunFolder) -> bool:
    """Return whether a run was killed after it had written its best result, and before it saved the score.

    The validation is repeated then: a later one may be worse, and would replace that result.
    """
    is_another_validations = state.best is None and state.best_step is not None
    if is_another_validations or state.best_step == state.step or not folder.best.exists():
        return False
    return _is_own(folder.best, state)


def identity_of(config: TrainConfig, base: str, around: str, pairs: PairIndex, world: int) -> dict[str, Any]:
    """Return the values that must match when the run resumes.

    Args:
        base: digest of the base's denoiser.
        around: digest of its VAE and of the model's configuration.
    """
    values = config.model_dump(mode="json")
    given = config.lora_weights_path
    return {key: values[key] for key in _SAME} | {
        "base_model_path (by content)": base,
        "VAE and configuration of base_model_path (by content)": around,
        "lora_weights_path (by content)": None if given is None else lora_digest(given),
        "lora_alpha_is": None if config.lora_alpha_is == "auto" else config.lora_alpha_is,  # earlier runs lack it
        "number of training pairs": len(pairs),
        "training pairs (by the sizes of their files)": pairs.digest,
        "samples of a forward pass over all processes": config.batch_size * world,
    }


def resumed(
    state: TrainState, config: TrainConfig, identity: Mapping[str, Any], measured: str | None, progress: Progress
) -> TrainState:
    """Return the state as the run goes on from it; what has changed is noted.

    Args:
        identity: from `identity_of`.
        measured: digest of what scores are measured on.

    Raises:
        ConfigError: it is the state of another run.
    """
    check_identity(state, identity, state_file(config))
    values = config.model_dump(mode="json")
    changed = changed_keys(state, {key: value for key, value in values.items() if key not in (*_SAME, *_FREE)})
    progress.note(f"resuming after step {state.step:,}.")
    if changed:
        progress.note(f"changed since its last save: {', '.join(changed.values())}.")
    is_comparable = not changed.keys() & _MEASURED and state.measured in (None, measured)
    return state if is_comparable else _without_best(state, progress)


def parts_of(
    state: TrainState | None, config: TrainConfig, identity: Mapping[str, Any], measured: str | None
) -> tuple[str, dict[str, int]]:
    """Return the digest of the part of the run that begins, and those of earlier parts, as in `TrainState`."""
    if state is None:
        return part_digest(config, {"identity": identity, "measured": measured}), {}
    if state.part and has_settings(state.config, config) and state.measured == measured:
        return state.part, state.earlier_parts
    part = part_digest(config, {"begins with": state.part, "step": state.step, "measured": measured})
    return part, {**state.earlier_parts, state.part: state.step}


def _without_best(state: TrainState, progress: Progress) -> TrainState:
    """Return the state without its best score: new ones are measured otherwise.

    The step stays, and says that a best save is another validation's. There may be one without a score, of a run that
    was killed before it saved the score.
    """
    if state.best is not None:
        progress.note(
            "the best score so far was measured otherwise: the best save is chosen anew from here on, and the "
            "earlier one is kept."
        )
    step = state.step if state.best_step is None else state.best_step
    return replace(state, best=None, best_step=step, validated=-1)
