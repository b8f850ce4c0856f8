"""Words and numbers shared by the options and the code that uses them."""

from typing import Literal

AlphaIs = Literal["auto", "rank", "file"]
"""Meaning of alpha in a file: `rank` ignores the stored value (scaling 1), `file` uses it. `auto`: `rank` for files of
the earlier implementation, recognised by their metadata or their alphas, else `file`."""

DENSE_UP_TO = 640
"""Vectors up to this length get a dense second moment: 1.6 MB in fp32, 0.4 MB in a file."""

SKETCH_RANK = 128
"""Columns of the sketch for longer vectors: 5.2 MB in fp32 at a length of 10240, 2.7 MB in a file."""

CONV_DENSE_UP_TO = 2304
"""The same for the in * kh * kw inputs that a conv's kernel covers: 21 MB in fp32, 5.3 MB in a file."""

VECTOR_DENSE_UP_TO = 64
VECTOR_SKETCH_RANK = 16
"""The same for biases and weights of norms, which are many: SDXL's UNet has 884 of up to 10240 values."""

SMALLEST_SIZE = 64
"""Square root of a pixel budget: below it the narrow sides of the long buckets get less than four latent pixels."""

FormatName = Literal["native", "comfyui", "kohya", "kohya-diffusers", "diffusers", "peft", "lycoris"]
"""Format of a LoRA that can be written. `kohya` has SDXL's single-file names, `kohya-diffusers` those of diffusers."""

ForeignFormat = Literal["comfyui", "kohya", "kohya-diffusers", "diffusers", "peft", "lycoris"]
"""Format of another program."""

BiasesAs = Literal["keep", "lora_bias", "replace", "drop"]
"""What becomes of bias deltas: `keep` them where the format can hold deltas, write them as the bias of `lora_B`,
`replace` the base's biases, or `drop` them."""

NormsAs = Literal["keep", "replace", "drop"]
"""What becomes of norm deltas: `keep` them where the format can hold deltas, `replace` the base's norms, or `drop`."""

MergeMethod = Literal["sum", "ties", "dare", "knots", "core"]
"""How LoRAs become one: their sum, or with less interference (see `combine/methods.py`)."""
