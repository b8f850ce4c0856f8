"""What ComfyUI finds: the nodes, their names and sockets, which saved workflows depend on."""

import asyncio
import json
import runpy
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from comfy_standin import NODE_MODULES, State

ROOT = Path(__file__).parents[3]

SOCKETS = {
    "LbmLoraLoadModel": ("checkpoint precision", "MODEL VAE"),
    "LbmLoraLoadLora": ("model lora strength blocks", "MODEL,LBM_MODEL"),
    "LbmLoraApplyLora": ("model lora strength blocks", "MODEL,LBM_MODEL"),
    "LbmLoraTranslate": (
        "model vae image steps seed mask background keep_detail match_color size",
        "IMAGE",
    ),
    "LbmLoraOpenLora": ("lora", "LBM_LORA"),
    "LbmLoraExtract": ("base tuned rank conv_rank max_size calibration", "LBM_LORA"),
    "LbmLoraCalibrate": ("tuned images save_as", "STRING"),
    "LbmLoraMerge": ("lora lora2 scales method", "LBM_LORA"),
    "LbmLoraResize": ("lora rank max_size", "LBM_LORA"),
    "LbmLoraSave": ("lora filename_prefix format biases norms", "STRING"),
    "LbmLoraValidate": ("base tuned lora images", "IMAGE STRING"),
    "LbmLoraFuse": ("checkpoint lora strength filename_prefix", "STRING"),
}


@pytest.fixture
def schemas(comfy: State) -> dict[str, Any]:
    extension = asyncio.run(import_module("lbm_lora.comfy.extension").comfy_entrypoint())
    return {
        schema.node_id: schema for schema in (node.define_schema() for node in asyncio.run(extension.get_node_list()))
    }


def test_nodes_have_the_names_and_sockets_that_workflows_use(schemas: dict[str, Any]) -> None:
    found = {
        name: (" ".join(one.id for one in schema.inputs), " ".join(one.io_type for one in schema.outputs))
        for name, schema in schemas.items()
    }
    assert found == SOCKETS


def test_the_pack_imports_the_entry_point(comfy: State) -> None:
    pack = runpy.run_path(str(ROOT / "integrations/comfyui/__init__.py"))
    assert pack["__all__"] == ["comfy_entrypoint"]
    assert asyncio.run(pack["comfy_entrypoint"]()) is not None


def test_a_clone_of_the_repository_hands_the_pack_over(comfy: State) -> None:
    """ComfyUI takes the folder in custom_nodes for a package of any name, here with a hyphen."""
    where = ROOT / "__init__.py"
    spec = spec_from_file_location("custom_nodes/lbm-lora", where, submodule_search_locations=[str(ROOT)])
    assert spec is not None
    assert spec.loader is not None
    clone = sys.modules[spec.name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(clone)
        assert spec.name + ".integrations" not in sys.modules  # the import alone does nothing
        assert isinstance(asyncio.run(clone.comfy_entrypoint()), import_module("comfy_api.v0_0_2").ComfyExtension)
    finally:
        for name in [one for one in sys.modules if one.split(".")[0] == spec.name]:
            del sys.modules[name]


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("comfy_api.v0_0_2", r"^lbm-lora's nodes need ComfyUI 0\.3\.64 or newer$"),
        ("jaxtyping", r"need the Python package jaxtyping\. Run: .* -m pip install -e "),
    ],
)
def test_the_pack_says_what_is_missing(comfy: State, monkeypatch: pytest.MonkeyPatch, missing: str, says: str) -> None:
    for name in (*NODE_MODULES, "lbm_lora.comfy.files"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr("lbm_lora.comfy.files", raising=False)
    monkeypatch.setitem(sys.modules, missing, None)  # what Python takes for a module that cannot be imported
    with pytest.raises(ImportError, match=says):
        runpy.run_path(str(ROOT / "integrations/comfyui/__init__.py"))


def test_example_workflows_are_those_of_the_tool_and_name_only_sockets_that_exist(schemas: dict[str, Any]) -> None:
    tool = runpy.run_path(str(ROOT / "tools/write_comfyui_workflows.py"))
    folder = ROOT / "integrations/comfyui/example_workflows"
    texts: dict[str, str] = tool["texts"]()
    found = {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in folder.rglob("*.json")}
    assert found == texts
    for name in (one for one in texts if one.startswith("api/")):
        for node in json.loads(texts[name]).values():
            if node["class_type"] in schemas:
                known = {one.id: one for one in schemas[node["class_type"]].inputs}
                required = {key for key, one in known.items() if not one.settings.get("optional")}
                assert required <= node["inputs"].keys() <= known.keys()


def test_a_clone_has_the_workflows_and_thumbnails_of_the_pack_where_comfyui_looks_for_them() -> None:
    tool = runpy.run_path(str(ROOT / "tools/write_comfyui_workflows.py"))
    copies: dict[str, Path] = tool["copies"]()
    assert {path.name for path in (ROOT / "example_workflows").iterdir()} == {Path(place).name for place in copies}
    assert [place for place, file in copies.items() if (ROOT / place).read_bytes() != file.read_bytes()] == []
    assert {Path(place).name for place in copies} == {
        f"{name}{ending}" for name in tool["WORKFLOWS"] for ending in (".json", ".jpg")
    }


def test_widgets_of_the_front_ends_workflows_are_in_the_order_of_the_nodes(schemas: dict[str, Any]) -> None:
    kinds = runpy.run_path(str(ROOT / "tools/write_comfyui_workflows.py"))["KINDS"]
    for name in schemas.keys() & kinds.keys():
        own = [one.id for one in schemas[name].inputs if "default" in one.settings or "options" in one.settings]
        assert [widget for widget in kinds[name].widgets if not widget.startswith("*")] == own
