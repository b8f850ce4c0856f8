"""Keys of a training file for the model: the base, and what to train."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lbm_lora.configs.values import AlphaIs
from lbm_lora.errors import PatternError
from lbm_lora.naming import matcher
from lbm_lora.training.settings.training_file import Count, Positive, Section, Share, Text

MOST_ITERATIONS = 100
"""Limit of N in pissa_niter_N."""
_INITS = re.compile(r"default|gaussian|pissa|pissa_niter_([1-9]\d*)|olora|orthogonal")

_NEW_LORA = (
    "lora_rank", "lora_conv_rank", "lora_alpha", "lora_conv_alpha", "lora_target_modules", "rank_pattern",
    "alpha_pattern", "use_rslora", "init_lora",
)  # fmt: skip
_LORA = (
    *_NEW_LORA, "lora_weights_path", "lora_alpha_is", "trainable_lora_modules", "train_biases", "train_norms",
    "lora_dropout",
)  # fmt: skip


class ModelSettings(Section):
    """The base, and what to train: a new LoRA, one from a file, or every parameter."""

    base_model_path: Path | None = None
    """LBM checkpoint to train on, or user/repo on the hub. If it does not exist and `backbone_signature` is given, the
    exact base is created there."""
    backbone_signature: Text | None = None
    """Backbone to create the base from: a hub id, a folder or a file."""
    config_path: Path | None = None
    """LBM's config.yaml, for a base that has none next to it or inside it."""
    mode: Literal["lora", "full"] = "lora"
    """lora trains a LoRA. full trains every parameter of the denoiser and writes a checkpoint."""
    lora_weights_path: Path | None = None
    """Continue this LoRA, a file or user/repo on the hub, with its own modules, ranks and alphas. Default: a new one,
    of `lora_rank`."""
    lora_alpha_is: AlphaIs = "auto"
    """Meaning of alpha in the file of `lora_weights_path`: rank ignores it (scaling 1), file uses it. auto: rank for
    files of the earlier implementation, else file."""
    lora_rank: Count | None = None
    """Rank of a new LoRA's linear layers."""
    lora_conv_rank: Count | None = None
    """Rank of a new LoRA's conv layers. Default: `lora_rank`."""
    lora_alpha: Positive | None = None
    """Alpha of a new LoRA's linear layers, above 0. Default: their rank, which gives scaling 1."""
    lora_conv_alpha: Positive | None = None
    """Alpha of a new LoRA's conv layers, above 0. Default: their rank."""
    lora_target_modules: tuple[Text, ...] | None = None
    """A new LoRA holds the modules that match these patterns. Default: every linear and conv layer."""
    rank_pattern: dict[Text, Count] = Field(default_factory=dict)
    """Pattern: rank, instead of `lora_rank` and `lora_conv_rank`. If several match, the last one applies."""
    alpha_pattern: dict[Text, Positive] = Field(default_factory=dict)
    """Pattern: alpha, instead of `lora_alpha` and `lora_conv_alpha`. If several match, the last one applies."""
    trainable_lora_modules: tuple[Text, ...] | None = None
    """Train only modules of the LoRA that match these patterns; the others are frozen. Default: all."""
    train_biases: bool = False
    """Also train the biases of the denoiser."""
    train_norms: bool = False
    """Also train weights and biases of the denoiser's normalisation layers."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank (arXiv 2312.03732)."""
    init_lora: Text = "default"
    """Initialisation of a new LoRA: default, gaussian, pissa, pissa_niter_N, olora or orthogonal. Conv layers always
    use default."""
    lora_dropout: Annotated[Share, Field(lt=1)] = 0.0
    """Dropout probability for the inputs of the LoRA modules, below 1."""

    @model_validator(mode="after")
    def _check_model(self) -> "ModelSettings":
        if self.base_model_path is None and self.backbone_signature is None:
            raise ValueError("no base is given. Set base_model_path, or backbone_signature to create it from")
        self._check_source()
        self._check_patterns()
        known = _INITS.fullmatch(self.init_lora)
        if not known:
            raise ValueError(
                f"unknown init_lora '{self.init_lora}'. Choose one of default, gaussian, pissa, pissa_niter_N, "
                "olora, orthogonal"
            )
        if int((known[1] or "1")[:9]) > MOST_ITERATIONS:
            raise ValueError(f"init_lora pissa_niter_N has N up to {MOST_ITERATIONS}, got '{self.init_lora}'")
        if self.init_lora == "orthogonal" and self.lora_rank is not None and self.lora_rank % 2:
            raise ValueError(f"init_lora orthogonal needs even ranks, but lora_rank is {self.lora_rank}")
        return self

    def _check_source(self) -> None:
        """Check that exactly one source is given: a new LoRA, a LoRA from a file, or full training."""
        if self.mode == "full":
            given = self._given(_LORA)
            if given:
                raise ValueError(only_lora(given))
        elif self.lora_weights_path is not None:
            given = self._given(_NEW_LORA)
            if given:
                raise ValueError(
                    f"lora_weights_path and {given} cannot both be given: the file defines modules, ranks and alphas. "
                    f"Remove {given}, or lora_weights_path to train a new LoRA"
                )
        elif self.lora_rank is None:
            raise ValueError(
                "there is no LoRA to train. Set lora_rank for a new one, lora_weights_path to continue one, or "
                "mode: full"
            )
        elif self._given(("lora_alpha_is",)):
            raise ValueError("lora_alpha_is needs lora_weights_path, which is not given. Remove it")

    def _given(self, keys: tuple[str, ...]) -> str | None:
        fields = ModelSettings.model_fields
        changed = [key for key in keys if getattr(self, key) != fields[key].get_default(call_default_factory=True)]
        return changed[0] if changed else None

    def _check_patterns(self) -> None:
        for key in ("lora_target_modules", "trainable_lora_modules"):
            patterns: tuple[str, ...] | None = getattr(self, key)
            if patterns == ():
                raise ValueError(f"{key} is empty, which selects nothing. Set it to null for all modules")
        chosen = (self.lora_target_modules or ()) + (self.trainable_lora_modules or ())
        for pattern in (*chosen, *self.rank_pattern, *self.alpha_pattern):
            try:
                matcher(pattern)
            except PatternError as error:
                raise ValueError(str(error).removesuffix(".")) from None


def only_lora(key: str) -> str:
    """Return the message for a LoRA key in full training."""
    return f"mode full trains every parameter, but {key} needs mode lora. Remove it"
