"""Who reads a format, and how: one line each, for the output of `convert` and for docs/formats.md."""

from collections.abc import Mapping

from lbm_lora.configs.values import FormatName

READERS: Mapping[FormatName, str] = {
    "native": "lbm-lora, in every command and in Python",
    "comfyui": "ComfyUI: LoraLoaderModelOnly, on a model that holds an LBM",
    "kohya": (
        "ComfyUI: LoraLoaderModelOnly; diffusers: StableDiffusionXLLoraLoaderMixin.lora_state_dict, then "
        "unet.load_lora_adapter; tools that read the LoRAs of sd-scripts"
    ),
    "kohya-diffusers": "ComfyUI: LoraLoaderModelOnly; LyCORIS: lycoris.utils.merge; diffusers as for kohya",
    "diffusers": 'diffusers: unet.load_lora_adapter(FILE, prefix="unet")',
    "peft": "PEFT: PeftModel.from_pretrained(unet, FOLDER)",
    "lycoris": "LyCORIS: create_lycoris_from_weights(1.0, FILE, unet); ComfyUI: LoraLoaderModelOnly",
}
