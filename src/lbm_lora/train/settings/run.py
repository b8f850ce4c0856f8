"""Keys of a training file about the run: devices, what is written, and how often."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from lbm_lora.train.settings.section import Count, Section, Text


def _precision(value: object) -> object:
    """YAML reads 32 as a number."""
    return "32" if value == 32 else value


def _resume(value: object) -> object:
    """One message instead of one for each side of the union."""
    if isinstance(value, str | Path) and str(value):
        return value
    raise ValueError("Input should be 'auto', 'never' or a file")


Resume = Annotated[Literal["auto", "never"] | Path, Field(union_mode="left_to_right"), BeforeValidator(_resume)]


class RunSettings(Section):
    """Devices, what is written, and how often."""

    device: Text = "auto"
    """auto (CUDA where there is one, else the CPU), cpu, cuda, cuda:N or mps (untested)."""
    devices: Count = 1
    """Processes on one machine, each on a device of its own."""
    num_nodes: Count = 1
    strategy: Text = "auto"
    """Lightning's name: auto, ddp, fsdp, ..."""
    precision: Annotated[Literal["bf16-mixed", "32"], BeforeValidator(_precision)] = "bf16-mixed"
    """Of the computation; trainable weights are fp32 in both."""
    base_dtype: Literal["float", "fp16", "bf16"] = "bf16"
    """That the frozen weights are kept in."""
    save_ckpt_path: Path = Path("./checkpoints_lora")
    """Folder for the LoRA, the state to resume from, the log and the pictures."""
    save_interval: Count = 1000
    """Optimizer steps from one save to the next."""
    keep_last: Count | None = None
    """Saves that are kept, besides the last and the best. None: all of them."""
    log_interval: Count = 100
    """Optimizer steps from one log line to the next."""
    validation_interval: Count | None = None
    """Optimizer steps from one validation to the next. None: `save_interval`."""
    validation_samples: Count = 16
    """Pairs that a validation looks at."""
    num_steps: tuple[Count, ...] = (1, 2, 4)
    """Denoiser calls for the pictures of a validation."""
    best_metric: Literal["loss", "psnr", "ssim", "lpips"] = "loss"
    """What decides which save is the best one."""
    wandb_project: Text | None = None
    logger: Literal["tensorboard", "wandb", "csv", "none"] = "tensorboard"
    """In a file, a `wandb_project` without a `logger` stands for wandb."""
    resume: Resume = "auto"
    """auto: go on where `save_ckpt_path` holds a state. never: start anew. Or the state to go on from."""

    @model_validator(mode="after")
    def _check_run(self) -> "RunSettings":
        if self.wandb_project is not None and self.logger != "wandb":
            raise ValueError(f"wandb_project is only used with logger wandb, and it is {self.logger}")
        if self.logger == "wandb" and self.wandb_project is None:
            raise ValueError("logger wandb needs wandb_project")
        if self.devices > 1 and ":" in self.device:
            raise ValueError(f"device {self.device} is one device, and devices is {self.devices}")
        if not self.num_steps:
            raise ValueError("num_steps is empty. Give at least one, as in [1, 2, 4]")
        return self
