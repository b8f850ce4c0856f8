"""`convert`: files and adapters in, the files of the command out."""

from pathlib import Path

import pytest

import lbm_lora
from lbm_lora import ConfigError, ConvertConfig, OutputError, WrongBaseError
from standins import Lbm


def test_an_adapter_gives_the_file_of_the_command(lbm: Lbm, tmp_path: Path) -> None:
    lora = lbm_lora.extract(lbm.base, lbm.tuned, rank=2, include="time_embedding.linear_1", device="cpu")
    found = lbm_lora.convert(lora, "comfyui", str(tmp_path / "a.safetensors"), base=lbm.base)
    assert (found.source, found.to, found.modules, found.biases) == ("native", "comfyui", 1, 1)
    path = lora.save(tmp_path / "l.safetensors")
    wanted = lbm_lora.run_convert(ConvertConfig(lora_path=path, to="comfyui", save_to=tmp_path / "b.safetensors"))
    assert found.output.read_bytes() == wanted.output.read_bytes()
    assert lora.save(tmp_path / "c.safetensors", "comfyui").read_bytes() == wanted.output.read_bytes()
    back = lbm_lora.convert(found.output, "native", tmp_path / "n.safetensors", rank=1)
    assert back.reduced == ("time_embedding.linear_1.weight",)
    with pytest.raises(WrongBaseError):
        lbm_lora.convert(lora, "comfyui", tmp_path / "d.safetensors", base=lbm.tuned)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder"):
        lbm_lora.convert("l.safetensors", "peft", tmp_path / "d.safetensors")
    with pytest.raises(ConfigError, match=r'^norms="replace" needs the base.s values: base[.]$'):
        lbm_lora.convert("l.safetensors", "peft", tmp_path / "d", norms="replace")
