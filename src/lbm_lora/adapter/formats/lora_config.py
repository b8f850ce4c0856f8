"""PEFT's `LoraConfig`: ranks and scalings of a LoRA's layers, as `adapter_config.json` and diffusers' header hold them.
Its `LoHaConfig` and `LoKrConfig` say the same of these, with `alpha` for `lora_alpha`.

Fields that only concern training, or that say which layers are chosen, are ignored: the keys of the file say that too.
A field that changes what the factors mean, or that we do not know, is refused by name unless it is off.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

import regex
import torch

from lbm_lora.errors import AdapterError, listing
from lbm_lora.naming import ModuleName

_USED = {
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "peft_type", "use_dora", "lora_bias", "bias",
    "alpha", "modules_to_save", "init_lora_weights",
}  # fmt: skip
_IGNORED = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "target_modules", "exclude_modules", "lora_dropout", "layers_to_transform", "layers_pattern", "megatron_core",
    "loftq_config", "eva_config", "qalora_group_size", "ensure_weight_tying", "runtime_config", "rank_dropout",
    "rank_dropout_scale", "module_dropout", "init_weights", "use_effective_conv2d", "decompose_both",
    "decompose_factor",
}  # fmt: skip
_ALPHAS = {"LORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha"}
"""PEFT's type -> its field for alpha."""
_SECONDS = 1  # for a pattern on one name
_FUZZY = re.compile(r"\{(?!\d*,?\d*\})")
_LARGEST = torch.finfo(torch.float32).max
_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "true", "false")
"""Initial values that leave the base as it is; others, such as `pissa`, take the factors out of the base first."""


@dataclass(frozen=True)
class LoraConfig:
    """The configuration of a PEFT adapter, as far as it decides what the factors mean.

    Attributes:
        rank, alpha: of the layers that no pattern names.
        rank_pattern, alpha_pattern: regular expression of layers -> value; the first that matches counts.
        use_rslora: whether the scaling is alpha / sqrt(rank), in place of alpha / rank.
    """

    rank: int
    alpha: float
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]
    use_rslora: bool = False
    use_dora: bool = False

    def alpha_of(self, name: ModuleName, rank: int, where: Path) -> float:
        """Return the alpha whose quotient by the rank is the layer's scaling."""
        said = _matched(self.rank_pattern, name, self.rank)
        if said != rank:
            raise AdapterError(
                f"{where}: {name} has rank {rank}, but the LoRA's config says {said:g}. They belong to different LoRAs."
            )
        alpha = _matched(self.alpha_pattern, name, self.alpha)
        return alpha * math.sqrt(rank) if self.use_rslora else alpha

    def scaling_of(self, name: ModuleName) -> float:
        """Return what multiplies the delta of a LoHa or LoKr, whose factors need not have the rank that it says."""
        return _matched(self.alpha_pattern, name, self.alpha) / _matched(self.rank_pattern, name, self.rank)


def _matched(pattern: Mapping[str, float], name: str, default: float) -> float:
    """Return the value of the first pattern that matches the name, or the end of it, as PEFT does."""
    return next((value for key, value in pattern.items() if _matches(key, name)), default)


def _matches(key: str, name: str) -> bool:
    try:
        return _compiled(key).match(name, timeout=_SECONDS) is not None
    except TimeoutError:
        raise AdapterError(
            f"the pattern {key[:100]} of the LoRA's config takes more than {_SECONDS} s for one name. Simplify it."
        ) from None


@cache
def _compiled(key: str) -> "regex.Pattern[str]":
    """Return a pattern's expression; there may be one for every layer, more than `re` remembers.

    PEFT's patterns are those of `re`, which has no limit of time: what `regex` alone understands is refused.
    """
    re.compile(key)
    if _FUZZY.search(key):
        raise re.error("a brace after which no number of repetitions follows")
    return regex.compile(rf"(.*\.)?({key})$")


def config_of(values: object, where: Path) -> LoraConfig:
    """Return the config that a JSON object holds."""
    fields = cast(dict[str, object], values) if isinstance(values, dict) else {}
    _check_supported(fields, where)
    alpha = _ALPHAS[str(fields.get("peft_type", "LORA"))]
    return LoraConfig(
        int(_number(fields.get("r"), "r", where, is_rank=True)),
        _number(fields.get(alpha), alpha, where),
        _pattern(fields.get("rank_pattern"), "rank_pattern", where, is_rank=True),
        _pattern(fields.get("alpha_pattern"), "alpha_pattern", where),
        bool(fields.get("use_rslora")),
        bool(fields.get("use_dora")),
    )


def _number(value: object, field: str, where: Path, *, is_rank: bool = False) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST:
        number = float(value)
        if not is_rank or (number >= 1 and number % 1 == 0):
            return number
    kind = "a whole number above 0" if is_rank else "a number up to 3.4e38"
    raise AdapterError(f"{where}: the LoRA's config has {field} {value!r:.60}. It must be {kind}.")


def _check_supported(fields: Mapping[str, object], where: Path) -> None:
    kind = fields.get("peft_type", "LORA")
    if not isinstance(kind, str) or kind not in _ALPHAS:
        raise AdapterError(
            f"{where}: the adapter is of PEFT's type {kind}. {', '.join(_ALPHAS)} are read. For another one, fuse it "
            "into its model with PEFT, then extract a LoRA from the result."
        )
    start = fields.get("init_lora_weights")
    if isinstance(start, str) and not start.lower().startswith(_PLAIN_STARTS):
        raise AdapterError(
            f"{where}: init_lora_weights {start} changed the base's weights, so the factors do not fit the plain "
            "base. PEFT's path_initial_model_for_weight_conversion saves it as a LoRA of the plain base."
        )
    others = {name: value for name, value in fields.items() if value and name not in _USED | _IGNORED}
    if others:
        asked = listing(f"{name} {json.dumps(value)}" for name, value in others.items())
        read = "LoRA, rsLoRA, DoRA, LoHa and LoKr are supported."
        raise AdapterError(f"{where}: the config uses unsupported settings: {asked}. {read}")


def _pattern(value: object, name: str, where: Path, *, is_rank: bool = False) -> dict[str, float]:
    if value and not isinstance(value, dict):
        raise AdapterError(f"{where}: the LoRA's config has {name} {value!r:.60}. It must be an object of patterns.")
    pattern = cast(dict[str, object], value or {})
    for key in pattern:
        try:
            _compiled(key)
        except (re.error, regex.error, RecursionError, OverflowError) as error:
            raise AdapterError(f"{where}: {name} of the LoRA's config has the pattern {key}: {error}.") from None
    return {key: _number(number, f"{name} of {key}", where, is_rank=is_rank) for key, number in pattern.items()}


def config_fields(ranks: Mapping[ModuleName, int]) -> dict[str, object]:
    """Return the config of factors without a scaling: alpha is the rank, on every layer.

    Layers of another rank than most are named by patterns anchored with `^`, since PEFT matches the end of a name.
    """
    counts = list(ranks.values())
    common = max(sorted(set(counts)), key=counts.count, default=1)
    pattern = {f"^{name}": rank for name, rank in ranks.items() if rank != common}
    return {
        "r": common,
        "lora_alpha": common,
        "rank_pattern": pattern,
        "alpha_pattern": dict(pattern),
        "target_modules": sorted(ranks),
    }
