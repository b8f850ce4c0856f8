"""What tests/interop runs with the readers and writers of other programs; docs/formats.md lists it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lbm_lora.adapter.formats.names import is_norm
from lbm_lora.choices import ForeignFormat
from lbm_lora.naming import ParamName, leaf_of


def _factors(name: ParamName) -> bool:
    return leaf_of(name) == "weight" and not is_norm(name)


def _factors_and_biases(name: ParamName) -> bool:
    return not is_norm(name)


def _factors_and_norms(name: ParamName) -> bool:
    return is_norm(name) or leaf_of(name) == "weight"


def _everything(name: ParamName) -> bool:
    return True


HELD: Mapping[str, Callable[[ParamName], bool]] = {
    "factors": _factors,
    "factors, biases": _factors_and_biases,
    "factors, norms": _factors_and_norms,
    "factors, biases, norms": _everything,
}
"""What a file holds -> the parameters that this is."""


@dataclass(frozen=True)
class Reading:
    """A way in which a program reads a file of ours.

    Attributes:
        call: what it is called with, as docs/formats.md shows it.
        wishes: options of `convert`.
        holds: a key of `HELD`.
        note: what else holds there, for docs/formats.md.
        slow: whether the default run leaves it out.
    """

    to: ForeignFormat
    call: str
    wishes: Mapping[str, Any]
    holds: str
    note: str = ""
    slow: bool = False


DROP = {"biases": "drop", "norms": "drop"}
LORA_BIAS = {"biases": "lora_bias", "norms": "drop"}

DIFFUSERS = (
    Reading("diffusers", 'unet.load_lora_adapter(FILE, prefix="unet")', LORA_BIAS, "factors, biases"),
    Reading(
        "diffusers",
        'unet.load_lora_adapter(FOLDER, weight_name=NAME, prefix="unet")',
        LORA_BIAS,
        "factors, biases",
        slow=True,
    ),
    Reading("diffusers", 'unet.load_lora_adapter(STATE_DICT, prefix="unet")', LORA_BIAS, "factors, biases", slow=True),
    Reading(
        "diffusers",
        'unet.load_lora_adapter(FILE, prefix="unet"); unet.fuse_lora()',
        DROP,
        "factors",
        "with biases, fuse_lora raises",
        slow=True,
    ),
)
CONVERTED = "StableDiffusionXLLoraLoaderMixin.lora_state_dict(FILE, unet_config=unet.config); unet.load_lora_adapter"
KOHYA = (
    Reading(
        "kohya",
        CONVERTED,
        DROP,
        "factors",
        "from diffusers 0.39; up to 0.42, it takes one alpha for all attentions",
        slow=True,
    ),
    Reading("kohya-diffusers", CONVERTED, DROP, "factors", "the same", slow=True),
)
FROM_PRETRAINED = "PeftModel.from_pretrained(unet, FOLDER)"
MERGED = f"{FROM_PRETRAINED}.merge_and_unload()"
PEFT = (
    Reading("peft", MERGED, DROP, "factors", slow=True),
    Reading("peft", FROM_PRETRAINED, LORA_BIAS, "factors, biases", "merge_and_unload raises", slow=True),
    Reading(
        "peft",
        FROM_PRETRAINED,
        {"biases": "lora_bias", "norms": "replace"},
        "factors, biases, norms",
        "merge_and_unload raises",
        slow=True,
    ),
    Reading(
        "peft",
        MERGED,
        {"biases": "replace", "norms": "replace"},
        "factors, biases, norms",
        "switching it off does not bring the base back",
        slow=True,
    ),
)
LYCORIS = (
    Reading(
        "lycoris",
        "create_lycoris_from_weights(1.0, FILE, unet)[0].merge_to(1.0)",
        {"biases": "drop"},
        "factors, norms",
    ),
    Reading("kohya-diffusers", "lycoris.utils.merge([], unet, load_file(FILE), 1.0)", DROP, "factors", slow=True),
)
READINGS = (*DIFFUSERS, *KOHYA, *PEFT, *LYCORIS)


@dataclass(frozen=True)
class Writing:
    """A file of another program that we read.

    Attributes:
        what: in a few words, for docs/formats.md.
        options: of the program's config or network.
        needs_base: whether it can be read only with the base at hand.
        slow: whether the default run leaves it out.
    """

    what: str
    options: Mapping[str, Any]
    needs_base: bool = False
    slow: bool = True


_FEW = r".*(mid_block\.attentions.*(to_q|to_out\.0)|conv1|time_emb_proj|ff\.net\.2)"
_PRODUCT = {"r": 2, "alpha": 3, "target_modules": _FEW, "use_effective_conv2d": True, "init_weights": False}
PEFT_FILES = (
    Writing("rsLoRA", {"r": 4, "lora_alpha": 3, "target_modules": _FEW, "use_rslora": True}),
    Writing("rank_pattern", {"r": 4, "lora_alpha": 3, "target_modules": _FEW, "rank_pattern": {"to_q": 2}}),
    Writing("lora_bias", {"r": 2, "lora_alpha": 5, "target_modules": ["conv1", "ff.net.2"], "lora_bias": True}),
    Writing(
        "modules_to_save",
        {"r": 2, "lora_alpha": 5, "target_modules": ["conv1", "to_q"], "modules_to_save": ["norm1", "conv_in"]},
        needs_base=True,
    ),
    Writing(
        'bias="all"', {"r": 2, "lora_alpha": 5, "target_modules": ["conv1", "ff.net.2"], "bias": "all"}, needs_base=True
    ),
    Writing(
        "DoRA",
        {"r": 2, "lora_alpha": 5, "target_modules": ["conv1", "conv2", "ff.net.2"], "use_dora": True},
        needs_base=True,
    ),
    Writing("LoHa", {**_PRODUCT, "peft_type": "LOHA"}),
    Writing("LoKr", {**_PRODUCT, "peft_type": "LOKR"}),
    Writing("LoKr with all factors split", {**_PRODUCT, "peft_type": "LOKR", "decompose_both": True}),
)
LYCORIS_FILES = (
    Writing(
        "LoCon with Tucker factors and norms (train_norm)",
        {"algo": "lora", "use_tucker": True, "train_norm": True},
        slow=False,
    ),
    Writing("LoCon, rsLoRA", {"algo": "lora", "rs_lora": True}),
    Writing("LoHa, also with Tucker factors", {"algo": "loha", "use_tucker": True}),
    Writing("LoKr, also with Tucker factors", {"algo": "lokr", "factor": 4, "use_tucker": True}),
    Writing("DoRA", {"algo": "lora", "dora_wd": True, "wd_on_output": True}, needs_base=True),
    Writing("full", {"algo": "full"}),
)
