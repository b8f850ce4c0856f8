"""The keys of a training file, by section, and their checks.

Both documented generations of the file are read: with `lora_rank`, `lora_alpha` and `lora_target_modules` (a new LoRA),
and with `lora_weights_path` (a LoRA to continue). Everything that depends only on the keys is checked here, before a
model or an image is read. Relative paths start from the current folder.
"""

import re
from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from lbm_lora.choices import SMALLEST_SIZE, AlphaIs
from lbm_lora.errors import ConfigError, PatternError, home_path, not_there
from lbm_lora.files import MARK
from lbm_lora.naming import matcher
from lbm_lora.text import dump_yaml
from lbm_lora.training.training_file import (
    LARGEST,
    Count,
    Positive,
    Section,
    Share,
    Text,
    check_shares,
    nearest,
    override,
    parse,
    read_values,
)

if TYPE_CHECKING:
    from torch.optim import Optimizer

STATE_NAME = "resume.pt"
"""The state of a run, in its folder."""
RUN_LINE = f"# {MARK}: configuration of a run\n"
"""First line of the configuration in a run's folder."""
SAMPLINGS = {
    "selected_timesteps": "custom_timesteps",
    "prob": "custom_timesteps",
    "logit_mean": "log_normal",
    "logit_std": "log_normal",
}
"""Keys that belong to one distribution of the timesteps."""

_NOT_SUPPORTED = {
    "LBFGS": "it evaluates the loss several times in a step",
    "SparseAdam": "it needs sparse gradients",
}
_INITS = re.compile(r"default|gaussian|pissa|pissa_niter_([1-9]\d?|100)|olora|orthogonal")
_NEW_LORA = (
    "lora_rank", "lora_conv_rank", "lora_alpha", "lora_conv_alpha", "lora_target_modules", "rank_pattern",
    "alpha_pattern", "use_rslora", "init_lora",
)  # fmt: skip
_LORA = (
    *_NEW_LORA, "lora_weights_path", "lora_alpha_is", "trainable_lora_modules", "train_biases", "train_norms",
    "lora_dropout",
)  # fmt: skip

Timestep = Annotated[float, Field(gt=0, le=1000)]
Weight = Annotated[float, Field(ge=0)]


class DataSettings(Section):
    """Where the pairs are, and how they are batched."""

    train_shards: tuple[Text, ...] | None = None
    """Train on these WebDataset shards: paths or URLs; {000..009} is expanded."""
    validation_shards: tuple[Text, ...] | None = None
    """Validate on these shards. Default: no validation."""
    train_folder: Path | None = None
    """Train on this folder of pairs, instead of `train_shards`."""
    validation_folder: Path | None = None
    """Validate on this folder of pairs, instead of `validation_shards`."""
    source_key: Text = "source.jpg"
    """Ending of a sample's source image in a shard: 001.source.jpg. Any image extension matches."""
    target_key: Text = "target.jpg"
    """Ending of a sample's target image."""
    mask_key: Text | None = None
    """Ending of a sample's mask, such as mask.png: only its white pixels count in the loss. Default: no masks, every
    pixel counts."""
    image_size: tuple[Annotated[int, Field(ge=SMALLEST_SIZE, le=16384)], ...] = (512,)
    """Train at these sizes: square roots of pixel budgets. Each sample gets one of them per epoch."""
    image_size_prob: tuple[Share, ...] | None = None
    """Probability of each size; together 1. Default: uniform."""
    aspect_buckets: bool = True
    """Stretch pairs to the nearest of LBM's aspect ratios. false: to a square."""
    flip: bool = False
    """Mirror half of the pairs at random, source and target together."""
    random_crop: bool = False
    """Crop source and target identically to the bucket's aspect ratio, instead of stretching them."""
    cache_latents: bool = False
    """Encode every pair once and keep its latents in `cache_dir`. Not with flip and random_crop."""
    cache_dir: Path | None = None
    """Folder for cached latents and downloaded shards."""
    num_workers: Annotated[int, Field(ge=0, le=256)] = 0
    """Read pairs in this many worker processes. 0: in the training process itself."""
    shuffle: bool = True
    """Read the pairs in a new random order in every epoch."""
    allow_pipe: bool = False
    """Allow `pipe:` shards, which run a shell command."""
    max_corrupt: Share = 0.05
    """Do not start if a larger share of the samples than this is unreadable or incomplete."""

    @property
    def has_validation(self) -> bool:
        """Whether there are validation pairs."""
        return self.validation_shards is not None or self.validation_folder is not None

    @model_validator(mode="after")
    def _check_data(self) -> "DataSettings":
        if self.train_shards is None and self.train_folder is None:
            raise ValueError("no training data is given. Set train_shards or train_folder")
        for split in ("train", "validation"):
            shards: tuple[str, ...] | None = getattr(self, f"{split}_shards")
            if shards and getattr(self, f"{split}_folder") is not None:
                raise ValueError(f"{split}_shards and {split}_folder cannot both be given. Remove one of them")
            piped = [shard for shard in shards or () if shard.startswith("pipe:")]
            if piped and not self.allow_pipe:
                raise ValueError(f"{split}_shards: '{piped[0]}' runs a shell command. Allow it with allow_pipe: true")
        if self.image_size_prob is not None:
            check_shares("image_size_prob", self.image_size_prob, "image_size", len(self.image_size))
        keys = [key for key in (self.source_key, self.target_key, self.mask_key) if key is not None]
        if len(set(keys)) < len(keys):
            raise ValueError(f"source_key, target_key and mask_key must differ, got {', '.join(keys)}")
        changing = [key for key in ("flip", "random_crop") if getattr(self, key)]
        if self.cache_latents and changing:
            raise ValueError(f"cache_latents cannot be used with {changing[0]}, which changes the pairs every epoch")
        if self.cache_latents and self.cache_dir is None:
            raise ValueError("cache_latents needs cache_dir, the folder for the latents")
        return self


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
        chosen = (self.lora_target_modules or ()) + (self.trainable_lora_modules or ())
        for pattern in (*chosen, *self.rank_pattern, *self.alpha_pattern):
            try:
                matcher(pattern)
            except PatternError as error:
                raise ValueError(str(error).removesuffix(".")) from None
        if not _INITS.fullmatch(self.init_lora):
            raise ValueError(
                f"unknown init_lora '{self.init_lora}'. Choose one of default, gaussian, pissa, pissa_niter_N (N up "
                "to 100), olora, orthogonal"
            )
        if self.init_lora == "orthogonal" and self.lora_rank is not None and self.lora_rank % 2:
            raise ValueError(f"init_lora orthogonal needs even ranks, but lora_rank is {self.lora_rank}")
        return self

    def _check_source(self) -> None:
        """Check that exactly one source is given: a new LoRA, a LoRA from a file, or full training."""
        if self.mode == "full":
            if given := self._given(_LORA):
                raise ValueError(only_lora(given))
        elif self.lora_weights_path is not None:
            if given := self._given(_NEW_LORA):
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

    def _given(self, keys: tuple[str, ...]) -> str:
        """Return the first key that has another value than its default; empty if none has."""
        default = {key: ModelSettings.model_fields[key].get_default(call_default_factory=True) for key in keys}
        return next((key for key in keys if getattr(self, key) != default[key]), "")


def only_lora(key: str) -> str:
    """Return the message for a LoRA key in full training."""
    return f"mode full trains every parameter, but {key} needs mode lora. Remove it"


class ObjectiveSettings(Section):
    """The loss. None: the value in the base's own configuration."""

    latent_loss_type: Literal["l2", "l1"] | None = None
    """Loss on latents. Default: as the base's configuration says."""
    latent_loss_weight: Weight = 1.0
    """Weight of the loss on latents."""
    pixel_loss_type: Literal["l2", "l1", "lpips"] | None = None
    """Loss on decoded pixels. Default: as the base's configuration says."""
    pixel_loss_weight: Weight = 0.0
    """Weight of the loss on pixels. LBM trains with 10, which takes a decoder pass and the LPIPS weights."""
    pixel_loss_max_size: Annotated[int, Field(ge=64, le=16384)] = 512
    """Longest side of the random crop for the pixel loss, in pixels."""
    lpips_weights: Path | None = None
    """File with the weights of the LPIPS network. Default: download torchvision's."""
    lpips_net: Literal["vgg", "alex"] = "vgg"
    """Network of the LPIPS loss."""
    timestep_sampling: Literal["uniform", "log_normal", "custom_timesteps"] | None = None
    """Distribution of the timesteps; log_normal: the logistic function of a normal value. Default: from the base's
    configuration."""
    selected_timesteps: tuple[Timestep, ...] | None = None
    """Timesteps for custom_timesteps: above 0, up to 1000, the source. Default: from the base's configuration."""
    prob: tuple[Share, ...] | None = None
    """Probability of each selected timestep; together 1. Default: from the base's configuration."""
    logit_mean: float | None = None
    """Mean of the normal value of log_normal. Default: as the base's configuration says."""
    logit_std: Positive | None = None
    """Standard deviation of the normal value of log_normal, above 0. Default: as the base's configuration says."""
    bridge_noise_sigma: Weight | None = None
    """Strength of the bridge noise. Default: as the base's configuration says."""

    @model_validator(mode="after")
    def _check_objective(self) -> "ObjectiveSettings":
        if self.latent_loss_weight == 0 and self.pixel_loss_weight == 0:
            raise ValueError("latent_loss_weight and pixel_loss_weight are both 0. At least one must be above 0")
        if self.selected_timesteps is not None and self.prob is not None:
            check_shares("prob", self.prob, "selected_timesteps", len(self.selected_timesteps))
        for key, sampling in SAMPLINGS.items():
            if getattr(self, key) is not None and self.timestep_sampling not in (None, sampling):
                raise ValueError(f"{key} needs timestep_sampling {sampling}, but it is {self.timestep_sampling}")
        return self


def optimizers() -> "dict[str, Callable[..., Optimizer]]":
    """Return the supported optimizer classes of torch, by name."""
    import torch

    kinds = {name: value for name, value in vars(torch.optim).items() if isinstance(value, type)}
    unfit = ("Optimizer", *_NOT_SUPPORTED)
    return {name: kind for name, kind in kinds.items() if issubclass(kind, torch.optim.Optimizer) and name not in unfit}


class OptimizerSettings(Section):
    """Optimizer, schedule, batch size and length of training."""

    learning_rate: Positive = 1e-4
    """Learning rate, above 0, after the warm-up."""
    optimizer: Text = "AdamW"
    """A class of torch.optim."""
    optimizer_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Other arguments of the optimizer, such as {weight_decay: 0.01}."""
    lora_plus_ratio: Positive | None = None
    """Ratio of the up factors' learning rate to the down factors': above 0 (LoRA+, arXiv 2402.12354). Default: 1."""
    learning_rate_scheduler: Literal["constant", "linear", "cosine"] = "constant"
    """Schedule after the warm-up: constant, or decay to 0 at the last step (linear, cosine)."""
    warmup_steps: Annotated[int, Field(ge=0, le=LARGEST)] = 0
    """Raise the learning rate from 0 over this many optimizer steps."""
    gradient_clip: Positive | None = 1.0
    """Scale gradients down to this norm, above 0, over all trainable parameters. null: no clipping."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, more time."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Save an exponential moving average of the weights with this decay, between 0 and 1. Default: the last weights."""
    batch_size: Annotated[Count, Field(le=4096)] = 8
    """Samples per forward pass and device."""
    accumulate: Count = 1
    """Forward passes per optimizer step (gradient accumulation)."""
    max_epochs: Count = 100
    """Stop after this many passes through the data."""
    max_steps: Count | None = None
    """Stop after this many optimizer steps, unless `max_epochs` stops earlier."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed for all random draws: order, augmentations, timesteps, noise, new weights."""

    @model_validator(mode="after")
    def _check_optimizer(self) -> "OptimizerSettings":
        known = optimizers()
        if self.optimizer in _NOT_SUPPORTED:
            raise ValueError(f"optimizer {self.optimizer} is not supported: {_NOT_SUPPORTED[self.optimizer]}")
        if self.optimizer not in known:
            hint = nearest(self.optimizer, known)
            raise ValueError(f"optimizer '{self.optimizer}' is not a class of torch.optim. {hint}")
        self._check_kwargs(known[self.optimizer])
        if self.max_steps is not None and self.warmup_steps >= self.max_steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps} and max_steps {self.max_steps}: the warm-up would never end"
            )
        return self

    def _check_kwargs(self, kind: "Callable[..., Optimizer]") -> None:
        """Check the names of the arguments, and their values by building the optimizer on one parameter."""
        import torch

        if "lr" in self.optimizer_kwargs:
            raise ValueError("optimizer_kwargs.lr is not allowed. Use learning_rate")
        known = [name for name in signature(kind).parameters if name not in ("params", "lr")]
        for key in self.optimizer_kwargs:
            if key not in known:
                hint = nearest(key, known)
                raise ValueError(f"optimizer_kwargs.{key} is not an argument of {self.optimizer}. {hint}")
        try:
            kind([torch.nn.Parameter(torch.zeros(1, 1))], lr=self.learning_rate, **self.optimizer_kwargs)
        except Exception as error:  # whatever torch refuses
            raise ValueError(f"{self.optimizer} rejects optimizer_kwargs {self.optimizer_kwargs}: {error}") from None


class RunSettings(Section):
    """Devices, outputs, and how often they are written."""

    device: Text = "auto"
    """Train on this device: auto (CUDA if available, else the CPU), cpu, cuda, cuda:N or mps (untested)."""
    devices: Annotated[Count, Field(le=64)] = 1
    """Processes per machine, each on its own device."""
    num_nodes: Annotated[Count, Field(le=1024)] = 1
    """Number of machines."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """Strategy of Lightning for several processes."""
    precision: Annotated[Literal["bf16-mixed", "32"], BeforeValidator(lambda value: "32" if value == 32 else value)] = (
        "bf16-mixed"
    )
    """Precision of the computation. Trainable weights are always fp32."""
    base_dtype: Literal["float", "fp16", "bf16"] = "bf16"
    """Precision of the frozen weights."""
    save_ckpt_path: Path = Path("./checkpoints_lora")
    """Folder for the LoRA, the state to resume from, the logs and the validation images."""
    save_interval: Count = 1000
    """Optimizer steps between saves."""
    keep_last: Count | None = None
    """Number of saves to keep, besides the last and the best. Default: all."""
    log_interval: Count = 100
    """Optimizer steps between log lines."""
    validation_interval: Count | None = None
    """Optimizer steps between validations. Default: `save_interval`."""
    validation_samples: Count = 16
    """Pairs per validation."""
    num_steps: tuple[Annotated[Count, Field(le=1000)], ...] = (1, 2, 4)
    """Denoiser calls per validation image."""
    best_metric: Literal["loss", "psnr", "ssim", "lpips"] = "loss"
    """Metric that selects the best save. All but loss need validation pairs."""
    wandb_project: Text | None = None
    """Project of Weights & Biases to log to. In a file, it stands for `logger: wandb`."""
    logger: Literal["tensorboard", "wandb", "csv", "none"] = "tensorboard"
    """Where curves are logged, besides the plain log."""
    resume: Annotated[Text, AfterValidator(lambda value: str(home_path(value)))] = "auto"
    """auto: resume if `save_ckpt_path` holds a state. never: start from scratch. FILE: resume from this state."""

    @model_validator(mode="after")
    def _check_run(self) -> "RunSettings":
        if self.wandb_project is not None and self.logger != "wandb":
            raise ValueError(f"wandb_project needs logger wandb, but it is {self.logger}")
        if self.logger == "wandb" and self.wandb_project is None:
            raise ValueError("logger wandb needs wandb_project")
        if self.devices > 1 and ":" in self.device:
            raise ValueError(f"device {self.device} is a single device, but devices is {self.devices}")
        return self


class TrainConfig(RunSettings, ObjectiveSettings, OptimizerSettings, ModelSettings, DataSettings):
    """Every key of a training file, with its default; the base classes are its sections."""

    @model_validator(mode="after")
    def _check_sections(self) -> "TrainConfig":
        if self.lora_plus_ratio is not None and self.mode == "full":
            raise ValueError(only_lora("lora_plus_ratio"))
        if self.best_metric != "loss" and not self.has_validation:
            raise ValueError(
                f"best_metric {self.best_metric} needs validation pairs. Give validation_shards or validation_folder"
            )
        return self

    def to_yaml(self) -> str:
        """Return the configuration as YAML with all defaults; reading it gives the same configuration."""
        return dump_yaml(self.model_dump(mode="json"))

    def check_files(self) -> None:
        """Check that the files and folders that a run reads exist."""
        keys = ("lora_weights_path", "config_path", "lpips_weights", "train_folder", "validation_folder")
        read: dict[str, Any] = {key: getattr(self, key) for key in keys}
        if self.backbone_signature is None:  # else a missing base is created
            read["base_model_path"] = self.base_model_path
        if self.resume not in ("auto", "never") and not (self.save_ckpt_path / STATE_NAME).exists():
            read["resume"] = Path(self.resume)  # else the run goes on from its own state
        for key, path in read.items():
            if path is not None and not path.exists():
                raise ConfigError(f"{key}: {not_there(path)} Relative paths start from the current folder.")


LIST_KEYS = frozenset(name for name, key in TrainConfig.model_fields.items() if "tuple[" in str(key.annotation))
"""Keys whose value is a list."""


def read_train_config(
    config: Path | str | Mapping[str, Any] | None, keys: Mapping[str, Any] | None = None, *, is_typed: bool = False
) -> TrainConfig:
    """Return the configuration that a training file, or a mapping of its keys, stands for.

    Args:
        keys: values that take precedence; `rank_pattern.ff.net` is the key `ff.net` of `rank_pattern`.
        is_typed: they are from the command line. From Python, one value stands for a list of it, and a dtype of torch
            for its name.
    """
    is_file = isinstance(config, str | Path)
    values = read_values(Path(config)) if isinstance(config, str | Path) else dict(config or {})
    given = keys or {}
    changed = override(values, given if is_typed else {key: _plain(key, value) for key, value in given.items()})
    if values.get("wandb_project") is not None:
        values.setdefault("logger", "wandb")
    return parse(TrainConfig, values, where=str(config) if is_file else "train", changed=changed if is_typed else ())


def _plain(key: str, value: Any) -> Any:
    if key == "base_dtype":
        name = str(value).removeprefix("torch.")
        return {"float16": "fp16", "bfloat16": "bf16", "float32": "float", "fp32": "float"}.get(name, name)
    is_one = isinstance(value, str | Path | int | float) and not isinstance(value, bool)
    return [value] if is_one and key in LIST_KEYS else value
