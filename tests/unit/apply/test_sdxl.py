"""A LoRA of SDXL's shapes on an LBM: what is left out, cropped and kept, and what is said of it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lbm_lora.adapter import Adapter, LoraModule
from lbm_lora.apply import adapted_to_lbm
from lbm_lora.errors import AdapterError
from lbm_lora.naming import ModuleName, ParamName
from lbm_lora.progress import LbmLoraWarning
from standins import CROSS_ATTENTION, backbone_unet_config, lbm_unet_config, unet_shapes

Rand = Callable[..., Tensor]
LBM = {ParamName(name): shape for name, shape in unet_shapes(lbm_unet_config()).items()}
SDXL = {ParamName(name): shape for name, shape in unet_shapes(backbone_unet_config()).items()}
OF_TEXT = [name for name in SDXL if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]


def adapter_of(shapes: dict[ParamName, tuple[int, ...]], rand: Rand) -> Adapter:
    """Rank 2 on each matrix, dense on each vector."""
    modules: dict[ModuleName, LoraModule] = {}
    for param, (out, *rest) in shapes.items():
        if rest:
            name = ModuleName(param.removesuffix(".weight"))
            modules[name] = LoraModule(name, rand(2, *rest), rand(out, 2, *[1] * (len(rest) - 1)), 1.0)
    dense = {param: rand(*shape) for param, shape in shapes.items() if len(shape) == 1}
    return Adapter(modules, dense, prefix="denoiser.")


@pytest.fixture
def sdxl(rand: Rand) -> Adapter:
    """A LoRA of every tensor of SDXL's UNet, and one of a text encoder."""
    return adapter_of(SDXL | {ParamName("text_encoder.layers.0.q_proj.weight"): (8, 8)}, rand)


def test_what_sees_the_text_is_left_out_and_said(sdxl: Adapter) -> None:
    assert len(OF_TEXT) == 140
    with pytest.warns(LbmLoraWarning) as caught:
        found = adapted_to_lbm(sdxl, LBM)
    added = [name for name in SDXL if name.startswith("add_embedding.")]
    assert set(found.left_out) == {*OF_TEXT, *added, "text_encoder.layers.0.q_proj.weight"}
    assert set(found.adapter.params) == LBM.keys() - set(OF_TEXT)
    assert all(found.adapter.shape_of(name) == LBM[name] for name in found.adapter.params)
    name = ModuleName("mid_block.attentions.0.proj_in")
    assert found.adapter.modules[name] is sdxl.modules[name]
    (warning,) = caught
    assert str(warning.message) == (
        "the LoRA was made for SDXL. Left out: 140 deltas of attn2.to_k and attn2.to_v, because an LBM's attn2 sees "
        "the image, not text. To apply their first columns: crop. Left out: 5 deltas of parts that an LBM lacks: "
        "add_embedding.linear_1.weight, add_embedding.linear_2.weight, text_encoder.layers.0.q_proj.weight and 2 more."
    )


def test_cropped_it_takes_the_columns_that_the_base_takes(sdxl: Adapter) -> None:
    with pytest.warns(LbmLoraWarning, match=r"Cropped to their first columns: 140 deltas"):
        found = adapted_to_lbm(sdxl, LBM, crop=True)
    assert set(found.adapter.params) == LBM.keys()
    assert list(found.cropped) == [name for name in sdxl.params if name in OF_TEXT]
    for name in OF_TEXT:
        whole, cropped = sdxl.delta(name), found.adapter.delta(name)
        assert whole is not None
        assert cropped is not None
        assert (whole.shape[1], tuple(cropped.shape)) == (CROSS_ATTENTION, LBM[name])
        torch.testing.assert_close(cropped, whole[:, : LBM[name][1]])


@pytest.mark.parametrize("crop", [False, True])
def test_an_lbms_own_lora_is_returned_as_it_is(rand: Rand, crop: bool) -> None:
    adapter = adapter_of(LBM, rand)
    assert adapted_to_lbm(adapter, LBM, crop=crop).adapter is adapter


def test_nothing_left_is_an_error_with_the_way_out(rand: Rand) -> None:
    adapter = adapter_of({name: SDXL[name] for name in OF_TEXT[:1]}, rand)
    with pytest.raises(AdapterError) as caught:
        adapted_to_lbm(adapter, LBM)
    assert str(caught.value) == (
        "the LoRA was made for SDXL, and changes only what an LBM lacks: "
        f"{OF_TEXT[0]}. To apply their first columns: crop."
    )
    foreign = adapter_of({ParamName("add_embedding.linear_1.weight"): (8, 8)}, rand)
    with pytest.raises(AdapterError, match=r"lacks: add_embedding\.linear_1\.weight\.$"):
        adapted_to_lbm(foreign, LBM, crop=True)
