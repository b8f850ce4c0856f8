"""Any network: a text encoder, measured on tokens, and a LoRA of its change with and without what was measured.

    python examples/text_encoder.py

The encoder is a small CLIPTextModel of transformers (it comes with lbm-lora[train]) with random weights. Its
"fine-tune" changes every matrix by a matrix of low rank and some noise. It is calibrated on texts of very few words,
and tested on texts like these and on others. There, what was measured misleads: without `run` the LoRA is worse than
plain SVD. With `run`, LoRAs are run before they are written, and the statistics are shrunk as far as needed.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import CLIPTextConfig, CLIPTextModel

import lbm_lora

WORDS = 2000


def encoder() -> CLIPTextModel:
    """A small text encoder in which attention and MLP matter about as much as in a trained one."""
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=WORDS,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=32,
        initializer_factor=2.0,
    )
    model = CLIPTextModel(config).eval()
    words = model.get_input_embeddings().weight.data
    words *= 20
    words[: WORDS // 2, 64:] = 0  # two kinds of words, which have no channel in common
    words[WORDS // 2 :, :64] = 0
    return model


def tuned_of(base: CLIPTextModel) -> CLIPTextModel:
    """The base with a change of rank 24 with falling singular values, and noise, in every matrix of its layers."""
    tuned = encoder()
    tuned.load_state_dict(base.state_dict())
    draw = torch.Generator().manual_seed(1)
    for name, weight in tuned.named_parameters():
        if weight.dim() == 2 and "embedding" not in name:
            up, down = (torch.randn(size, 24, generator=draw) / 24**0.5 for size in weight.shape)
            falling = 1 / torch.arange(1, 25)
            noise = 0.02 * torch.randn(weight.shape, generator=draw)
            weight.data += 0.4 * weight.data.std() * ((up * falling) @ down.mT * 8 + noise)
    return tuned


def texts(count: int, first: int, last: int, length: int, seed: int) -> list[torch.Tensor]:
    """Rows of words between two numbers; low ones are frequent, as in a language."""
    draw = torch.Generator().manual_seed(seed)
    shares = 1 / torch.arange(1, last - first + 1)
    return [first + torch.multinomial(shares, length, True, generator=draw)[None] for _ in range(count)]


def runner(model: CLIPTextModel, batches: list[torch.Tensor]) -> Callable[[], Iterator[torch.Tensor]]:
    def run() -> Iterator[torch.Tensor]:
        for tokens in batches:
            yield model(input_ids=tokens).last_hidden_state

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=24, help="texts to calibrate on (%(default)s)")
    parser.add_argument("--sizes", nargs="+", default=["100KB", "200KB", "400KB"], help="of the LoRAs")
    parser.add_argument("--to", type=Path, default=Path("out/text_encoder"), help="folder for the results")
    arguments = parser.parse_args()
    arguments.to.mkdir(parents=True, exist_ok=True)

    base = encoder()
    tuned = tuned_of(base)
    like = runner(tuned, texts(16, 2, 6, 24, seed=3))
    unlike = runner(tuned, texts(16, 1000, WORDS, 9, seed=4))
    run = runner(tuned, texts(arguments.count, 2, 6, 24, seed=2))
    statistics = lbm_lora.calibrate(tuned, run)
    print(f"{statistics}; not measured: {', '.join(statistics.unmeasured)}")

    for size in arguments.sizes:
        loras = {
            "plain": lbm_lora.extract(base, tuned, max_size=size, save_precision="fp16"),
            "calibrated": lbm_lora.extract(base, tuned, calibration=statistics, max_size=size),
            "calibrated and run": lbm_lora.extract(base, tuned, calibration=statistics, run=run, max_size=size),
        }
        loras["calibrated and run"].save(arguments.to / f"lora_{size}.safetensors")
        for name, lora in loras.items():
            errors = [lbm_lora.validate_outputs(base, tuned, lora, run) for run in (like, unlike)]
            print(
                f"{size} {name}: output error {errors[0].typical:.2%} on such texts, {errors[1].typical:.2%} on others"
            )


if __name__ == "__main__":
    main()
