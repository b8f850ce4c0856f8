"""Keys of a training file about the loss. What is left out is as the base's own configuration says."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lbm_lora.train.settings.section import Positive, Section, Share, check_shares

Timestep = Annotated[float, Field(gt=0, le=1000)]
Weight = Annotated[float, Field(ge=0)]


class ObjectiveSettings(Section):
    """The loss. None stands for what the base's own configuration says."""

    latent_loss_type: Literal["l2", "l1"] | None = None
    latent_loss_weight: Weight = 1.0
    pixel_loss_type: Literal["l2", "l1", "lpips"] | None = None
    pixel_loss_weight: Weight = 0.0
    """Off by default: LBM itself trains with 10, which takes a pass through the decoder, and LPIPS' weights."""
    pixel_loss_max_size: Annotated[int, Field(ge=64)] = 512
    """Longest side of the random crop that the pixel loss compares, pixels."""
    lpips_weights: Path | None = None
    """File with the weights of the LPIPS network. None: those of torchvision, which are downloaded."""
    lpips_net: Literal["vgg", "alex"] = "vgg"
    timestep_sampling: Literal["uniform", "log_normal", "custom_timesteps"] | None = None
    """How the timestep of a sample is drawn. log_normal: the logistic function of a normal value."""
    selected_timesteps: tuple[Timestep, ...] | None = None
    """The timesteps of custom_timesteps; 1000 is the source."""
    prob: tuple[Share, ...] | None = None
    """Probability of each of them."""
    logit_mean: float | None = None
    logit_std: Positive | None = None
    bridge_noise_sigma: Weight | None = None

    @model_validator(mode="after")
    def _check_objective(self) -> "ObjectiveSettings":
        if self.latent_loss_weight == 0 and self.pixel_loss_weight == 0:
            raise ValueError("latent_loss_weight and pixel_loss_weight are both 0: there is no loss")
        if self.selected_timesteps == ():
            raise ValueError("selected_timesteps is empty. Give at least one, or remove the key")
        if self.selected_timesteps is not None and self.prob is not None:
            check_shares("prob", self.prob, "selected_timesteps", len(self.selected_timesteps))
        self._check_used("custom_timesteps", ("selected_timesteps", "prob"))
        self._check_used("log_normal", ("logit_mean", "logit_std"))
        return self

    def _check_used(self, sampling: str, keys: tuple[str, ...]) -> None:
        given = [key for key in keys if getattr(self, key) is not None]
        if given and self.timestep_sampling not in (None, sampling):
            raise ValueError(
                f"{given[0]} is only used with timestep_sampling {sampling}, and it is {self.timestep_sampling}"
            )
