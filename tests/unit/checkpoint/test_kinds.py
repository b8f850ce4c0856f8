"""Files that are taken for each other are named by their keys."""

import pytest

from lbm_lora.checkpoint import NATIVE, FileKind, kind_of

M = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT = M.replace(".", "_")


def lora(name: str) -> FileKind:
    return FileKind(name, "lora")


def foreign(name: str) -> FileKind:
    return FileKind(name, "foreign")


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ([f"denoiser.{M}.lora_up.weight", f"denoiser.{M}.lora_down.weight"], NATIVE),
        ([f"denoiser.{M}.lora_up.int8", f"denoiser.{M}.lora_unit"], NATIVE),
        ([f"{M}.lora_up.weight"], NATIVE),
        (["denoiser.conv_in.diff", "denoiser.conv_in.diff_b"], NATIVE),
        ([f"lora_unet_{FLAT}.lora_up.weight"], lora("a LoRA in the format of kohya's sd-scripts")),
        (["lora_te1_text_model_x.alpha"], lora("a LoRA in the format of kohya's sd-scripts")),
        ([f"lora_unet_{FLAT}.hada_w1_a"], lora("a LyCORIS file (LoHa)")),
        ([f"lora_unet_{FLAT}.lokr_w2"], lora("a LyCORIS file (LoKr)")),
        ([f"lycoris_{FLAT}.lora_up.weight"], lora("a LyCORIS file")),
        ([f"base_model.model.{M}.lora_A.weight"], lora("a PEFT adapter")),
        ([f"unet.{M}.lora_A.weight"], lora("a LoRA in the format of diffusers")),
        ([f"unet.{M}.lora.down.weight"], lora("a LoRA in the format of diffusers")),
        (["unet.x.attn1.processor.to_q_lora.down.weight"], lora("a LoRA in the format of diffusers")),
        (["diffusion_model.input_blocks.4.1.proj_in.lora_up.weight"], lora("a LoRA in ComfyUI's format")),
        ([f"{M}.lora_A.weight"], lora("a LoRA with the keys of PEFT or FastVideo")),
        (
            ["unet:0:up", "unet:0:down"],
            foreign("a LoRA in the format of cloneofsimo's lora, which names no layers"),
        ),
        ([f"lycoris_{FLAT}.oft_blocks"], foreign("an OFT or BOFT file, which turns weights by a rotation")),
        ([f"lycoris_{FLAT}.a1.weight"], foreign("a GLoRA file, which scales and shifts weights")),
        ([f"lycoris_{FLAT}.on_input"], foreign("an IA3 file, which scales inputs or outputs")),
        (["base_model.model.to_k.ia3_l"], foreign("an IA3 file, which scales inputs or outputs")),
        (
            ["base_model.model.to_k.vera_lambda_b"],
            foreign("a VeRA file, whose factors are random numbers that it does not hold"),
        ),
        (["a1.weight", "block.a1.weight"], None),
        (
            [f"denoiser.{M}.lora_up.weight", f"denoiser.{M}.dora_scale"],
            lora("a DoRA"),
        ),
        ([f"denoiser.{M}.weight", "vae.vae_model.decoder.conv_in.weight"], FileKind("an LBM checkpoint", "network")),
        (["encoder.conv_in.weight", "decoder.conv_out.weight", "quant_conv.bias"], FileKind("a VAE alone", "network")),
        (["vae.vae_model.encoder.a", "vae.vae_model.decoder.b"], FileKind("a VAE alone", "network")),
        (
            ["model.diffusion_model.out.2.weight", "first_stage_model.decoder.a"],
            FileKind("a single-file Stable Diffusion checkpoint", "network"),
        ),
        (["conv_in.weight", f"{M}.weight"], FileKind("a UNet of diffusers alone", "network")),
        (["layer.weight"], None),
        ([], None),
    ],
)
def test_a_file_is_known_by_its_keys(keys: list[str], kind: FileKind | None) -> None:
    assert kind_of(keys, {}) == kind


def test_our_own_files_are_known_by_their_header() -> None:
    assert kind_of(["conv_in.diff"], {"lbm_lora_format": "1"}) == NATIVE
    statistics = kind_of(["inputs.conv_in.triangle"], {"lbm_lora_statistics": "1"})
    assert statistics == FileKind("a file of calibration statistics", "statistics")
