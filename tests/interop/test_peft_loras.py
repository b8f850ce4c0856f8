"""LoRAs in PEFT's format read by PEFT, in each way of holding biases and norms; adapters of PEFT read by us."""

from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model

import mini
from foreign import HELD, PEFT, PEFT_FILES, Reading, Writing
from lbm_lora import load_adapter

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]  # warnings of readers are not ours

CONFIGS = {"LORA": LoraConfig, "LOHA": LoHaConfig, "LOKR": LoKrConfig}


@pytest.mark.parametrize("reading", mini.params(PEFT))
def test_peft_reads_our_folder(tmp_path: Path, reading: Reading) -> None:
    lora = mini.lora()
    folder = lora.save(tmp_path / "x", "peft", base=mini.base(), **reading.wishes)
    model = PeftModel.from_pretrained(mini.denoiser(), str(folder), low_cpu_mem_usage=True)
    held = lora.filtered(HELD[reading.holds])
    assert mini.difference(model, held) <= mini.BOUND
    if "merge_and_unload" in reading.call:
        assert mini.difference(model.merge_and_unload(), held) <= mini.BOUND


@pytest.mark.parametrize("writing", mini.params(PEFT_FILES))
def test_we_read_what_peft_writes(tmp_path: Path, writing: Writing) -> None:
    kind = CONFIGS[writing.options.get("peft_type", "LORA")]
    model = get_peft_model(mini.denoiser(), kind(**writing.options))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=random)
    model.save_pretrained(str(tmp_path))
    base = mini.base() if writing.needs_base else None
    assert mini.difference(model, load_adapter(tmp_path, base=base)) <= mini.BOUND
