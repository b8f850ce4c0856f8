"""LPIPS against the `lpips` package, and the files that its weights come from."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lbm_lora.errors import CheckpointError
from lbm_lora.imaging import perceptual
from lbm_lora.imaging.perceptual import Lpips, Net, load_lpips, net_of

NETS: tuple[Net, ...] = ("vgg", "alex", "squeeze")

package = pytest.mark.filterwarnings(
    "ignore:The parameter 'pretrained' is deprecated:UserWarning",
    "ignore:Arguments other than a weight enum:UserWarning",
)
"""What torchvision says of the call that the lpips package makes."""


def random_weights(net: Net) -> dict[str, Tensor]:
    """torchvision's tensors of a network with random values, whose activations keep their size."""
    generator = torch.Generator().manual_seed(5)
    shapes = {name: tensor.shape for name, tensor in perceptual._empty(net).state_dict().items()}
    return {
        f"features.{name}": torch.randn(shape, generator=generator) * (2 / max(1, shape[1:].numel())) ** 0.5
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[Net, Path]:
    """One file of random weights for each network."""
    folder = tmp_path_factory.mktemp("lpips")
    for net in NETS:
        save_file(random_weights(net), folder / f"{net}.safetensors")
    return {net: folder / f"{net}.safetensors" for net in NETS}


@pytest.fixture(scope="module")
def squeeze(files: dict[Net, Path]) -> Lpips:
    """The smallest one."""
    return load_lpips("squeeze", files["squeeze"])


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """Two batches of two noisy images of 40x48, values in [-1, 1]."""
    generator = torch.Generator().manual_seed(1)
    one = torch.rand(2, 3, 40, 48, generator=generator) * 2 - 1
    return one, (one + 0.3 * torch.randn(2, 3, 40, 48, generator=generator)).clamp(-1, 1)


def reference(net: Net, ours: Lpips) -> Callable[[Tensor, Tensor], Tensor]:
    """The package's own module with the same weights in its trunk, and its own linear layers."""
    import lpips

    with torch.device("meta"):
        module = lpips.LPIPS(net=net, pnet_rand=True, pretrained=False, verbose=False)
    module.scaling_layer = lpips.ScalingLayer()
    features = ours.features.state_dict()
    trunk = {name: features[name.split(".", 1)[1]] for name in module.net.state_dict()}
    module.net.load_state_dict(trunk, strict=True, assign=True)
    linear = torch.load(Path(lpips.__file__).parent / f"weights/v0.1/{net}.pth", map_location="cpu", weights_only=True)
    for index, layer in enumerate(module.lins):
        layer.load_state_dict({"model.1.weight": linear[f"lin{index}.model.1.weight"]}, strict=True, assign=True)
    return module.eval()


@package
@pytest.mark.parametrize("net", NETS)
def test_it_is_the_packages_distance(net: Net, files: dict[Net, Path], pair: tuple[Tensor, Tensor]) -> None:
    ours = load_lpips(net, files[net])
    with torch.no_grad():
        expected = reference(net, ours)(*pair).flatten()
    found = ours(*pair)
    assert found.shape == (2,)
    assert float(expected.min()) > 0.01
    assert torch.allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("zipped", [True, False])
def test_torchvisions_own_file_is_read(
    zipped: bool, squeeze: Lpips, pair: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    """Its older files are pickles without a zip archive; classifiers in it are left alone."""
    path = tmp_path / "squeezenet1_1-b8a52dc0.pth"
    state = {**random_weights("squeeze"), "classifier.1.weight": torch.zeros(10, 512, 1, 1)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    assert net_of(path) == "squeeze"
    assert torch.equal(load_lpips("squeeze", path)(*pair), squeeze(*pair))


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"features.0.weight": Harmful(tmp_path / "made")}, protocol=2))
    with pytest.raises(CheckpointError, match=r"w\.pth is not a file of tensors written by torch\.save"):
        load_lpips("vgg", tmp_path / "w.pth")
    assert not (tmp_path / "made").exists()
