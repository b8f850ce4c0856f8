"""The files of a validation: the report, and the list of layers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lbm_lora.configs.validate import ValidateConfig
from lbm_lora.errors import with_name
from lbm_lora.files import MARK, Outputs, current, file_digest
from lbm_lora.hub import hub_name
from lbm_lora.report import Provenance, installed_versions, report_paths


def with_report(config: ValidateConfig) -> ValidateConfig:
    """Return the config with the folder for its reports: not in the cache, for a LoRA on the hub."""
    name = hub_name(config.lora_path)
    folder = report_folder(config) if name is None else config.report or Path(f"{name.stem}_report")
    return replace(config, report=folder)


def check_output(config: ValidateConfig, images: Sequence[Path]) -> None:
    """Refuse to write the report or the list of layers over an input, or over a file of somebody else.

    Raises:
        OutputError: in both cases.
    """
    plan_report(config, images).check()


def plan_report(config: ValidateConfig, images: Sequence[Path]) -> Outputs:
    """Return what the command reads and writes.

    Args:
        images: all images that are compared.
    """
    outputs = Outputs(overwrite=config.overwrite)
    outputs.reads(config.base_model_path, config.tuned_model_path, config.lora_path, *config.other_lora_path)
    outputs.reads(config.lpips_weights, config.config_path, *images)
    for path in report_paths(report_folder(config), has_image=bool(images)):
        outputs.writes(path, "the report")
    return outputs.writes(layer_names_file(config), "" if config.layer_names else "the list of layers")


def report_folder(config: ValidateConfig) -> Path:
    """Return the folder of the reports, by default next to the LoRA: a folder of PEFT has no ending."""
    lora = with_name(config.lora_path)
    return config.report or lora.with_name(f"{lora.name if lora.is_dir() else lora.stem}_report")


def layer_names_file(config: ValidateConfig) -> Path:
    """Return the path of the list of layers."""
    return config.layer_names or report_folder(config) / "lora_layer_names.txt"


def lora_digests(config: ValidateConfig) -> dict[str, str]:
    """Return the digests of the LoRAs' files by role. They may be replaced while they are measured: ask before."""
    files = {role: current(path) for role, path in _lora_paths(config).items()}
    return {role: file_digest(path) for role, path in files.items() if path.is_file()}


def provenance_of(config: ValidateConfig, digests: Mapping[str, str]) -> Provenance:
    """Return what was compared, how, and with which libraries.

    Args:
        digests: from `lora_digests`.
    """
    paths = {"base": config.base_model_path, "tuned": config.tuned_model_path, **_lora_paths(config)}
    settings = {
        "images": config.images is not None,
        "num_inference_steps": " ".join(map(str, config.num_inference_steps)) or "as trained",
        "seed": config.seed,
        "size": config.size,
        "torch_dtype": config.torch_dtype,
    }
    return Provenance(
        files={role: path.name for role, path in paths.items()},
        digests=digests,
        settings=settings,
        versions=installed_versions(),
    )


def _lora_paths(config: ValidateConfig) -> dict[str, Path]:
    return {"LoRA": config.lora_path} | {f"LoRA {n}": path for n, path in enumerate(config.other_lora_path, 2)}


def layer_names_text(config: ValidateConfig, lines: Sequence[str]) -> str:
    """Return the documented file: two comment lines, a blank one, the names."""
    lacking = sum(line.startswith("#") for line in lines)
    more = f" Comments: {lacking} that {config.lora_path.name} lacks." if lacking else ""
    head = f"# The {len(lines)} layers of {config.tuned_model_path.name} that a LoRA can hold.{more}\n"
    use = f"# Copy names, or parts of them, into trainable_lora_modules of a training configuration ({MARK}).\n"
    return head + use + "\n" + "\n".join(lines) + "\n"
