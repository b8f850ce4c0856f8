"""Metadata of an adapter file: the strings in its `.safetensors` header.

The names under `lbm_lora_` are ours. The `ss_` names are those that other LoRA tools look for; none of them claims
that this is a plain SDXL LoRA, since tools would then load it as one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from lbm_lora.files import MARK_KEY
from lbm_lora.text import TextError, parse_json

FORMAT = "1"
EXPORT_KEY = "lbm_lora_export"
"""In place of `lbm_lora_format` in a file of another program's format: that format, and the version here."""
CONFIG_DIGEST_KEY = "lbm_lora_config_digest"
"""Digest of the configuration that was written next to an exported file: PEFT's has no room for a mark of ours."""
STEP_KEY = "lbm_lora_step"
"""Number of steps after which a training saved the file. LoRAs derived from it do not have this key."""
SETTINGS_KEY = "lbm_lora_settings"
COUNTS_KEY = "lbm_lora_counts"
ERRORS_KEY = "lbm_lora_errors"
REFINEMENT_KEY = "lbm_lora_refinement"
_FINGERPRINTS = ("base_fingerprint", "base_tensors", "tuned_fingerprint")


@dataclass(frozen=True)
class AdapterMetadata:
    """Metadata of an adapter.

    Attributes:
        format: version of this format; empty in files of other tools.
        base_fingerprint: digest of the base's component; empty if the file does not record it.
        base_tensors: short digests of the base's tensors in the order of their names, joined.
        tuned_fingerprint: digest of the tuned component, for an extracted adapter.
    """

    format: str = ""
    base_fingerprint: str = ""
    base_tensors: str = ""
    tuned_fingerprint: str = ""
    facts: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def is_earlier_implementation(self) -> bool:
        """Whether the earlier implementation of these commands wrote the file.

        It writes the requested rank as alpha even if the matrix caps the stored rank: the scaling is 1.
        """
        return self.facts.get("lbm_extraction_method") == "all_layers_analysis"

    @property
    def is_made_for_output(self) -> bool:
        """Whether it was extracted or refined for the denoiser's output: the error of its weights says little then."""
        return parsed(self.facts, SETTINGS_KEY).get("method") == "calibrated" or REFINEMENT_KEY in self.facts

    def without_errors(self) -> "AdapterMetadata":
        """Return the metadata without the measured errors, which no longer hold once the deltas change."""
        return replace(self, facts={key: value for key, value in self.facts.items() if key != ERRORS_KEY})

    def to_header(self, exported_as: str = "") -> dict[str, str]:
        """Return the strings for the header.

        Args:
            exported_as: the format of the file, if it is not the native one: no reader may take it for a native file.
        """
        ours = {
            "lbm_lora_format": "" if exported_as else self.format,
            EXPORT_KEY: f"{exported_as} {self.format}".strip() if exported_as else "",
            MARK_KEY: "" if exported_as or self.format else "LoRA",
            **{f"lbm_lora_{name}": getattr(self, name) for name in _FINGERPRINTS},
        }
        return {**{key: value for key, value in ours.items() if value}, **self.facts}

    @classmethod
    def from_header(cls, header: Mapping[str, str]) -> "AdapterMetadata":
        """Invert `to_header`, of a native file or an exported one."""
        facts = dict(header)
        for key in (MARK_KEY, CONFIG_DIGEST_KEY, STEP_KEY):
            facts.pop(key, None)
        format = facts.pop("lbm_lora_format", facts.pop(EXPORT_KEY, "").partition(" ")[2])
        known = {name: facts.pop(f"lbm_lora_{name}", "") for name in _FINGERPRINTS}
        return cls(format=format, facts=facts, **known)


def extraction_facts(
    *, rank: int, conv_rank: int, counts: Mapping[str, int], errors: Mapping[str, float], settings: Mapping[str, object]
) -> dict[str, str]:
    """Return the facts of an extracted adapter.

    Args:
        errors: errors measured after rounding to the stored dtype.
        settings: settings of the run; file names without folders.
    """
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "ss_network_args": compact({"conv_dim": conv_rank, "conv_alpha": conv_rank}),
        "lbm_lora_architecture": "latent-bridge-matching",
        COUNTS_KEY: compact(counts),
        ERRORS_KEY: compact({key: rounded(value) for key, value in errors.items()}),
        SETTINGS_KEY: compact(settings),
    }


def rounded(error: float) -> float:
    """Return an error as metadata hold it: with six digits."""
    return float(f"{error:.6g}")


def compact(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def parsed(facts: Mapping[str, str], key: str) -> dict[str, object]:
    """Return a JSON fact as a dictionary; empty if it is absent or, as another program may write it, not one."""
    try:
        found = parse_json(facts.get(key, "{}"))
    except TextError:
        return {}
    return cast(dict[str, object], found) if isinstance(found, dict) else {}
