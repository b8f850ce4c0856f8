"""The promises about exactness, on the bundled mini model and its real fine-tune."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lbm_lora
from lbm_lora import ScaledAdapter, bundled, fuse_module, infer, inject, load_adapter, load_model, open_checkpoint

pytestmark = pytest.mark.e2e

TUNED = bundled.TUNED / "model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base of the mini backbone, in bf16."""
    path = tmp_path_factory.mktemp("base") / "base.ckpt"
    outcome = lbm_lora.make_base(path, config_path=bundled.TUNED / "config.yaml", tuned_model_path=TUNED)
    assert outcome.baseline is not None
    assert outcome.baseline.can_be_base, outcome.baseline.verdict
    return outcome.base.safetensors


def extract(base: Path, folder: Path, rank: int, precision: str) -> Path:
    """The LoRA of one rank for linear and conv layers."""
    path = folder / f"lora_{rank}_{precision}.safetensors"
    lbm_lora.extract(
        base,
        TUNED,
        save_to=path,
        rank=rank,
        conv_rank=rank,
        save_precision=precision,  # pyright: ignore[reportArgumentType]
    )
    return path


@pytest.fixture(scope="module")
def full_rank(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Full-rank LoRAs in both precisions."""
    folder = tmp_path_factory.mktemp("full")
    return {precision: extract(base, folder, 9999, precision) for precision in ("bf16", "float")}


def test_the_mini_model_has_the_topology_of_the_real_one() -> None:
    with open_checkpoint(TUNED) as checkpoint:
        shapes = [spec.shape for spec in checkpoint.component().specs.values()]
        vae = checkpoint.component("vae.vae_model.")
        assert len(checkpoint.specs) == 1676 + 248 + 1
        assert len(vae) == 248
    kinds = [len(shape) if len(shape) < 4 else shape[2:] for shape in shapes]
    assert len(kinds) == 1676
    counts = {kind: kinds.count(kind) for kind in (1, 2, (3, 3), (1, 1))}
    assert counts == {1: 884, 2: 741, (3, 3): 40, (1, 1): 11}


def test_the_tuned_folder_has_upstreams_layout() -> None:
    """One .yaml and one .safetensors, whose keys are those that a strict load of upstream's model expects."""
    assert [path.name for path in bundled.TUNED.glob("*.yaml")] == ["config.yaml"]
    assert [path.name for path in bundled.TUNED.glob("*.safetensors")] == ["model.safetensors"]
    with safe_open(TUNED, "pt") as file:
        components = {key.split(".")[0] for key in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        assert components == {"denoiser", "vae", "num_iterations"}
    load_model(TUNED)  # strict


def test_the_base_is_the_backbone_cropped_bit_for_bit(base: Path) -> None:
    made = load_file(base)
    unet = load_file(bundled.BACKBONE / "unet/diffusion_pytorch_model.safetensors")
    vae = load_file(bundled.BACKBONE / "vae/diffusion_pytorch_model.safetensors")
    expected = {f"vae.vae_model.{name}": tensor for name, tensor in vae.items()}
    for name, tensor in unet.items():
        if name.startswith("add_embedding"):
            continue
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
            tensor = tensor[:, : tensor.shape[0]]
        expected[f"denoiser.{name}"] = tensor
    expected["num_iterations"] = torch.zeros(())
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[key], expected[key].to(torch.bfloat16)) for key in expected)


@pytest.mark.parametrize(("precision", "limit"), [("bf16", 0.003), ("float", 1e-5)])
def test_full_rank_error(base: Path, full_rank: dict[str, Path], precision: str, limit: float) -> None:
    weights = lbm_lora.validate(base, TUNED, full_rank[precision]).weights
    assert weights.matched == 792
    assert weights.success_rate == 1
    assert weights.mean_module_error <= limit
    assert weights.mean_relative_mean_error <= limit


@pytest.mark.parametrize("rank", [24, *(pytest.param(rank, marks=pytest.mark.slow) for rank in (2, 8))])
def test_any_rank_is_optimal_on_every_module(base: Path, tmp_path: Path, rank: int) -> None:
    """||E|| <= 1.001 * optimum + 1e-5 * ||delta|| with fp32 factors; the optimum is numpy's exact SVD in fp64."""
    adapter = load_adapter(extract(base, tmp_path, rank, "float"))
    before, after = load_file(base), load_file(TUNED)
    assert len(adapter.modules) == 792
    for name, module in adapter.modules.items():
        key = f"denoiser.{name}.weight"
        delta = (after[key].double() - before[key].double()).flatten(1).numpy()
        found = np.linalg.norm(delta - module.delta().double().flatten(1).numpy())
        optimum = np.linalg.norm(np.linalg.svd(delta, compute_uv=False)[module.rank :])
        assert found <= 1.001 * optimum + 1e-5 * np.linalg.norm(delta), name


def test_full_rank_gives_the_tuned_models_image(base: Path, full_rank: dict[str, Path]) -> None:
    images = sorted(bundled.PAIRS.glob("*.source.png"))[:3]
    outputs = lbm_lora.validate(base, TUNED, full_rank["float"], images=images).outputs
    assert outputs is not None
    scores = {entry.variant: float(entry.worst_psnr) for entry in outputs.summary}
    assert scores["base + LoRA"] >= 45
    assert scores["base"] < 40


def test_scale_0_gives_the_bases_image_exactly(base: Path, full_rank: dict[str, Path]) -> None:
    model = load_model(base, dtype=torch.float32)
    image = torch.linspace(-1, 1, 3 * 128 * 128).reshape(1, 3, 128, 128)
    latent = model.encode(image)

    def output() -> torch.Tensor:
        return model.decode(latent - model.denoise(latent, torch.tensor([1000.0])))

    before = output()
    off = [ScaledAdapter(load_adapter(full_rank["bf16"]), 0.0)]
    on = [ScaledAdapter(load_adapter(full_rank["bf16"]), 1.0)]
    fused = fuse_module(model.denoiser, off)
    assert torch.equal(output(), before)
    fused.unfuse()
    injected = inject(model.denoiser, on)
    assert not torch.equal(output(), before)
    injected.eject()
    assert torch.equal(output(), before)


def test_scale_0_writes_the_bases_file(base: Path, full_rank: dict[str, Path], tmp_path: Path) -> None:
    source = sorted(bundled.PAIRS.glob("*.source.png"))[0]
    infer(base, source, tmp_path / "base.png", torch_dtype="float")
    infer(base, source, tmp_path / "off.png", full_rank["bf16"], lora_scale=0.0, torch_dtype="float")
    assert (tmp_path / "off.png").read_bytes() == (tmp_path / "base.png").read_bytes()


def test_a_file_of_the_earlier_implementation_applies_with_scaling_1(
    base: Path, full_rank: dict[str, Path], tmp_path: Path
) -> None:
    """It stores the requested rank, 9999, as alpha in bf16, whatever the stored rank."""
    tensors = load_file(full_rank["bf16"])
    earlier = {key: tensor for key, tensor in tensors.items() if ".lora_" in key}
    for key in [key for key in earlier if key.endswith("lora_down.weight")]:
        earlier[key.replace("lora_down.weight", "alpha")] = torch.tensor(9999.0, dtype=torch.bfloat16)
    path = tmp_path / "earlier.safetensors"
    save_file(earlier, path, metadata={"lbm_extraction_method": "all_layers_analysis", "lbm_native_naming": "true"})
    assert {module.scaling for module in load_adapter(path).modules.values()} == {1.0}

    # the same file without dense deltas in today's format is the reference
    kept = {key: tensor for key, tensor in tensors.items() if not key.endswith((".diff", ".diff_b"))}
    save_file(kept, tmp_path / "today.safetensors")
    source = sorted(bundled.PAIRS.glob("*.source.png"))[0]
    for name in ("earlier", "today"):
        with pytest.warns(UserWarning, match="does not say which base it was made from"):
            infer(base, source, tmp_path / f"{name}.png", tmp_path / f"{name}.safetensors", torch_dtype="float")
    one, other = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("earlier", "today"))
    assert np.array_equal(one, other)
