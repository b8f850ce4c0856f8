"""Made by tools/write_api_stubs.py of the functions and their configs; not to be edited."""

from collections.abc import Mapping
from collections.abc import Sequence
from lbm_lora.progress import Progress
from lbm_lora.workflows.data_check import CheckResult
from lbm_lora.workflows.data_pack import PackResult
from lbm_lora.workflows.train import TrainResult
from pathlib import Path
from typing import Any
from typing import Literal
import torch

def train(
    config: Path | str | Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
    train_shards: str | Sequence[str] | None = None,
    validation_shards: str | Sequence[str] | None = None,
    train_folder: Path | str | None = None,
    validation_folder: Path | str | None = None,
    source_key: str = 'source.jpg',
    target_key: str = 'target.jpg',
    mask_key: str | None = None,
    image_size: int | Sequence[int] = (512,),
    image_size_prob: float | Sequence[float] | None = None,
    aspect_buckets: bool = True,
    flip: bool = False,
    random_crop: bool = False,
    cache_latents: bool = False,
    cache_dir: Path | str | None = None,
    num_workers: int = 0,
    shuffle: bool = True,
    allow_pipe: bool = False,
    max_corrupt: float = 0.05,
    base_model_path: Path | str | None = None,
    backbone_signature: str | None = None,
    config_path: Path | str | None = None,
    mode: Literal['lora', 'full'] = 'lora',
    lora_weights_path: Path | str | None = None,
    lora_alpha_is: Literal['auto', 'rank', 'file'] = 'auto',
    lora_rank: int | None = None,
    lora_conv_rank: int | None = None,
    lora_alpha: float | None = None,
    lora_conv_alpha: float | None = None,
    lora_target_modules: str | Sequence[str] | None = None,
    rank_pattern: dict[str, int] = ...,
    alpha_pattern: dict[str, float] = ...,
    trainable_lora_modules: str | Sequence[str] | None = None,
    train_biases: bool = False,
    train_norms: bool = False,
    use_rslora: bool = False,
    init_lora: str = 'default',
    lora_dropout: float = 0.0,
    learning_rate: float = 0.0001,
    optimizer: str = 'AdamW',
    optimizer_kwargs: dict[str, Any] = ...,
    lora_plus_ratio: float | None = None,
    learning_rate_scheduler: Literal['constant', 'linear', 'cosine'] = 'constant',
    warmup_steps: int = 0,
    gradient_clip: float | None = 1.0,
    gradient_checkpointing: bool = True,
    ema_decay: float | None = None,
    batch_size: int = 8,
    accumulate: int = 1,
    max_epochs: int = 100,
    max_steps: int | None = None,
    seed: int = 0,
    latent_loss_type: Literal['l2', 'l1'] | None = None,
    latent_loss_weight: float = 1.0,
    pixel_loss_type: Literal['l2', 'l1', 'lpips'] | None = None,
    pixel_loss_weight: float = 0.0,
    pixel_loss_max_size: int = 512,
    lpips_weights: Path | str | None = None,
    lpips_net: Literal['vgg', 'alex'] = 'vgg',
    timestep_sampling: Literal['uniform', 'log_normal', 'custom_timesteps'] | None = None,
    selected_timesteps: float | Sequence[float] | None = None,
    prob: float | Sequence[float] | None = None,
    logit_mean: float | None = None,
    logit_std: float | None = None,
    bridge_noise_sigma: float | None = None,
    device: str = 'auto',
    devices: int = 1,
    num_nodes: int = 1,
    strategy: Literal['auto', 'ddp', 'fsdp'] = 'auto',
    precision: Literal['bf16-mixed', '32'] = 'bf16-mixed',
    base_dtype: Literal['float', 'fp16', 'bf16'] | torch.dtype = 'bf16',
    save_ckpt_path: Path | str = ...,
    save_interval: int = 1000,
    keep_last: int | None = None,
    log_interval: int = 100,
    validation_interval: int | None = None,
    validation_samples: int = 16,
    num_steps: int | Sequence[int] = (1, 2, 4),
    best_metric: Literal['loss', 'psnr', 'ssim', 'lpips'] = 'loss',
    wandb_project: str | None = None,
    logger: Literal['tensorboard', 'wandb', 'csv', 'none'] = 'tensorboard',
    resume: Literal['auto', 'never'] | Path | str = 'auto',
    progress: Progress = ...,
) -> TrainResult:
    """Train a LoRA, new or continued, or the full denoiser. The run's files are in `save_ckpt_path`.

    Args:
        config: a training file, or its keys and values. None: the options alone.
        overwrite: replace files in the run's folder that lbm-lora did not write.
        progress: a listener.
        train_shards: Train on these WebDataset shards: paths or URLs; {000..009} is expanded.
        validation_shards: Validate on these shards. Default: no validation.
        train_folder: Train on this folder of pairs, instead of `train_shards`.
        validation_folder: Validate on this folder of pairs, instead of `validation_shards`.
        source_key: Ending of a sample's source image in a shard: 001.source.jpg. Any image extension matches.
        target_key: Ending of a sample's target image.
        mask_key: Ending of a sample's mask, such as mask.png: only its white pixels count in the loss. Default: no
            masks, every pixel counts.
        image_size: Train at these sizes: square roots of pixel budgets. Each sample gets one of them per epoch.
        image_size_prob: Probability of each size; together 1. Default: uniform.
        aspect_buckets: Stretch pairs to the nearest of LBM's aspect ratios. false: to a square.
        flip: Mirror half of the pairs at random, source and target together.
        random_crop: Crop source and target identically to the bucket's aspect ratio, instead of stretching them.
        cache_latents: Encode every pair once and keep its latents in `cache_dir`. Not with flip and random_crop.
        cache_dir: Folder for cached latents and downloaded shards.
        num_workers: Read pairs in this many worker processes. 0: in the training process itself.
        shuffle: Read the pairs in a new random order in every epoch.
        allow_pipe: Allow `pipe:` shards, which run a shell command.
        max_corrupt: Do not start if a larger share of the samples than this is unreadable or incomplete.
        base_model_path: LBM checkpoint to train on, or user/repo on the hub. If it does not exist and
            `backbone_signature` is given, the exact base is created there.
        backbone_signature: Backbone to create the base from: a hub id, a folder or a file.
        config_path: LBM's config.yaml, for a base that has none next to it or inside it.
        mode: lora trains a LoRA. full trains every parameter of the denoiser and writes a checkpoint.
        lora_weights_path: Continue this LoRA, a file or user/repo on the hub, with its own modules, ranks and
            alphas. Default: a new one, of `lora_rank`.
        lora_alpha_is: Meaning of alpha in the file of `lora_weights_path`: rank ignores it (scaling 1), file uses
            it. auto: rank for files of the earlier implementation, else file.
        lora_rank: Rank of a new LoRA's linear layers.
        lora_conv_rank: Rank of a new LoRA's conv layers. Default: `lora_rank`.
        lora_alpha: Alpha of a new LoRA's linear layers, above 0. Default: their rank, which gives scaling 1.
        lora_conv_alpha: Alpha of a new LoRA's conv layers, above 0. Default: their rank.
        lora_target_modules: A new LoRA holds the modules that match these patterns. Default: every linear and conv
            layer.
        rank_pattern: Pattern: rank, instead of `lora_rank` and `lora_conv_rank`. If several match, the last one
            applies.
        alpha_pattern: Pattern: alpha, instead of `lora_alpha` and `lora_conv_alpha`. If several match, the last one
            applies.
        trainable_lora_modules: Train only modules of the LoRA that match these patterns; the others are frozen.
            Default: all.
        train_biases: Also train the biases of the denoiser.
        train_norms: Also train weights and biases of the denoiser's normalisation layers.
        use_rslora: Scale by alpha / sqrt(rank) instead of alpha / rank (arXiv 2312.03732).
        init_lora: Initialisation of a new LoRA: default, gaussian, pissa, pissa_niter_N, olora or orthogonal. Conv
            layers always use default.
        lora_dropout: Dropout probability for the inputs of the LoRA modules, below 1.
        learning_rate: Learning rate, above 0, after the warm-up.
        optimizer: A class of torch.optim.
        optimizer_kwargs: Other arguments of the optimizer, such as {weight_decay: 0.01}.
        lora_plus_ratio: Ratio of the up factors' learning rate to the down factors': above 0 (LoRA+, arXiv
            2402.12354). Default: 1.
        learning_rate_scheduler: Schedule after the warm-up: constant, or decay to 0 at the last step (linear,
            cosine).
        warmup_steps: Raise the learning rate from 0 over this many optimizer steps.
        gradient_clip: Scale gradients down to this norm, above 0, over all trainable parameters. null: no clipping.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, more time.
        ema_decay: Save an exponential moving average of the weights with this decay, between 0 and 1. Default: the
            last weights.
        batch_size: Samples per forward pass and device.
        accumulate: Forward passes per optimizer step (gradient accumulation).
        max_epochs: Stop after this many passes through the data.
        max_steps: Stop after this many optimizer steps, unless `max_epochs` stops earlier.
        seed: Seed for all random draws: order, augmentations, timesteps, noise, new weights.
        latent_loss_type: Loss on latents. Default: as the base's configuration says.
        latent_loss_weight: Weight of the loss on latents.
        pixel_loss_type: Loss on decoded pixels. Default: as the base's configuration says.
        pixel_loss_weight: Weight of the loss on pixels. LBM trains with 10, which takes a decoder pass and the
            LPIPS weights.
        pixel_loss_max_size: Longest side of the random crop for the pixel loss, in pixels.
        lpips_weights: File with the weights of the LPIPS network. Default: download torchvision's.
        lpips_net: Network of the LPIPS loss.
        timestep_sampling: Distribution of the timesteps; log_normal: the logistic function of a normal value.
            Default: from the base's configuration.
        selected_timesteps: Timesteps for custom_timesteps: above 0, up to 1000, the source. Default: from the
            base's configuration.
        prob: Probability of each selected timestep; together 1. Default: from the base's configuration.
        logit_mean: Mean of the normal value of log_normal. Default: as the base's configuration says.
        logit_std: Standard deviation of the normal value of log_normal, above 0. Default: as the base's
            configuration says.
        bridge_noise_sigma: Strength of the bridge noise. Default: as the base's configuration says.
        device: Train on this device: auto (CUDA if available, else the CPU), cpu, cuda, cuda:N or mps (untested).
        devices: Processes per machine, each on its own device.
        num_nodes: Number of machines.
        strategy: Strategy of Lightning for several processes.
        precision: Precision of the computation. Trainable weights are always fp32.
        base_dtype: Precision of the frozen weights.
        save_ckpt_path: Folder for the LoRA, the state to resume from, the logs and the validation images.
        save_interval: Optimizer steps between saves.
        keep_last: Number of saves to keep, besides the last and the best. Default: all.
        log_interval: Optimizer steps between log lines.
        validation_interval: Optimizer steps between validations. Default: `save_interval`.
        validation_samples: Pairs per validation.
        num_steps: Denoiser calls per validation image.
        best_metric: Metric that selects the best save. All but loss need validation pairs.
        wandb_project: Project of Weights & Biases to log to. In a file, it stands for `logger: wandb`.
        logger: Where curves are logged, besides the plain log.
        resume: auto: resume if `save_ckpt_path` holds a state. never: start from scratch. FILE: resume from this
            state.

    Returns:
        The outcome of the run, and its files.

    Raises:
        ConfigError: the training file, or an option; before anything else is read.
        MissingExtraError: a package of the train extra is not installed.
        InputError: invalid input of any kind; see `lbm_lora.errors`.
        QualityError: the loss is not finite any more.
    """
    ...

def pack_data(
    folder: Path | str,
    to: Path | str,
    *,
    overwrite: bool = False,
    name: str = 'pairs',
    shard_mb: int = 500,
    shard_count: int = 10000,
    max_corrupt: float = 0.05,
    source_key: str = 'source.jpg',
    target_key: str = 'target.jpg',
    mask_key: str = 'mask.png',
    progress: Progress = ...,
) -> PackResult:
    """Make WebDataset shards of a folder of pairs; files are copied byte for byte.

    Args:
        folder: holds NAME.source.png, NAME.target.png, or folders source/ and target/ with equal names; any image
            format.
        to: folder for the shards; a new or an empty one.
        progress: a listener.
        overwrite: Replace existing files at the output paths, even if lbm-lora did not write them; inputs are never
            replaced.
        name: Name of the shards: NAME-000000.tar, NAME-000001.tar and so on.
        shard_mb: Put at most this many megabytes into a shard.
        shard_count: Put at most this many pairs into a shard.
        max_corrupt: Write nothing if a larger share of the pairs than this is unreadable or incomplete.
        source_key: Ending of source images. Its word, `source`, is also the name of their folder; any image
            extension matches.
        target_key: Ending of target images, likewise.
        mask_key: Ending of masks, likewise. Masks are packed if there are any.

    Returns:
        The shards, and the pairs that were left out.

    Raises:
        ConfigError: a limit below 1.
        DataError: the folder holds no pairs, too many of them are corrupt, or two names become the same.
        OutputError: the folder for the shards is not empty, or cannot be written.
    """
    ...

def check_data(
    data: Path | str | Sequence[Path | str],
    *,
    image_size: int | Sequence[int] = (512,),
    batch_size: int = 8,
    max_corrupt: float = 0.05,
    source_key: str = 'source.jpg',
    target_key: str = 'target.jpg',
    mask_key: str | None = None,
    num_workers: int = 0,
    cache_dir: Path | str | None = None,
    allow_pipe: bool = False,
    progress: Progress = ...,
) -> CheckResult:
    """Read a complete data set, every pixel of it, and report.

    Args:
        data: a folder of pairs, or shards: paths, URLs, patterns with {000..009}. A .yaml file is a training file: its
            data are checked, with its keys and sizes.
        progress: a listener.
        image_size: Square roots of the pixel budgets that training will use.
        batch_size: Samples per training step, all processes together. Sets the number of steps in the report.
        max_corrupt: Fail if a larger share of the samples than this is unreadable or incomplete.
        source_key: Ending of a sample's source image. Any image extension matches.
        target_key: Ending of a sample's target image.
        mask_key: Ending of a sample's mask, such as mask.png. Every sample must then have one. Default: no masks.
        num_workers: Read with this many extra processes. 0 reads in the command's own process.
        cache_dir: Copy shards from URLs into this folder.
        allow_pipe: Allow `pipe:` shards, which run a shell command.

    Returns:
        The findings; `failures` are the splits with too many corrupt samples.

    Raises:
        ConfigError: a setting that cannot be.
        DataError: the data cannot be read, or hold nothing that could be used.
    """
    ...
