"""Write the example workflows of the ComfyUI pack, each in the format of its front end and in that of its API.

    python tools/write_comfyui_workflows.py

One graph is written once, here: a node's links and widgets by name. `NAME.json` opens in ComfyUI, `api/NAME.json` is
what POST /prompt takes: in a folder of its own, as ComfyUI lists each JSON file next to the others as a template.

Workflows and thumbnails are also copied to the root of the repository, where ComfyUI finds them if the clone itself is
in custom_nodes. A link in their place would stop ComfyUI on Windows, where git may write a text file for it.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "integrations/comfyui/example_workflows"

BASE, LORA, SOURCE = "mini_base.safetensors", "relight.safetensors", "source.png"
STOCK_LORA = "relight_comfyui.safetensors"

MODEL = "MODEL,LBM_MODEL"


@dataclass(frozen=True)
class Kind:
    """A node's class.

    Attributes:
        sockets: inputs that are linked -> their types.
        widgets: widget -> its type and default; `*` in a name marks one that the front end alone has.
        outputs: name -> type.
        size: width and height on the canvas.
    """

    sockets: Mapping[str, str]
    widgets: Mapping[str, tuple[str, Any]]
    outputs: Mapping[str, str]
    size: tuple[int, int]


KINDS = {
    "LbmLoraLoadModel": Kind(
        {},
        {"checkpoint": ("COMBO", BASE), "precision": ("COMBO", "auto")},
        {"MODEL": "MODEL", "VAE": "VAE"},
        (310, 110),
    ),
    "LbmLoraLoadLora": Kind(
        {"model": MODEL},
        {"lora": ("COMBO", LORA), "strength": ("FLOAT", 1.0), "blocks": ("STRING", "")},
        {"MODEL": MODEL},
        (310, 130),
    ),
    "LbmLoraApplyLora": Kind(
        {"model": MODEL, "lora": "LBM_LORA"},
        {"strength": ("FLOAT", 1.0), "blocks": ("STRING", "")},
        {"MODEL": MODEL},
        (310, 120),
    ),
    "LbmLoraTranslate": Kind(
        {"model": "MODEL", "vae": "VAE", "image": "IMAGE", "mask": "MASK", "background": "IMAGE"},
        {
            "steps": ("COMBO", 1),
            "seed": ("INT", 0),
            "*seed": ("", "fixed"),
            "keep_detail": ("FLOAT", 0.0),
            "match_color": ("FLOAT", 0.0),
            "size": ("INT", 0),
        },
        {"IMAGE": "IMAGE"},
        (310, 270),
    ),
    "LbmLoraExtract": Kind(
        {},
        {
            "base": ("COMBO", BASE),
            "tuned": ("COMBO", LORA),
            "rank": ("INT", 32),
            "conv_rank": ("INT", 16),
            "max_size": ("STRING", ""),
            "calibration": ("STRING", ""),
        },
        {"LBM_LORA": "LBM_LORA"},
        (310, 210),
    ),
    "LbmLoraSave": Kind(
        {"lora": "LBM_LORA"},
        {
            "filename_prefix": ("STRING", "loras/lbm"),
            "format": ("COMBO", "native"),
            "biases": ("COMBO", "keep"),
            "norms": ("COMBO", "keep"),
        },
        {"path": "STRING"},
        (310, 160),
    ),
    "LoraLoaderModelOnly": Kind(
        {"model": "MODEL"},
        {"lora_name": ("COMBO", STOCK_LORA), "strength_model": ("FLOAT", 1.0)},
        {"MODEL": "MODEL"},
        (310, 90),
    ),
    "LoadImage": Kind(
        {}, {"image": ("COMBO", SOURCE), "*upload": ("", "image")}, {"IMAGE": "IMAGE", "MASK": "MASK"}, (310, 320)
    ),
    "SaveImage": Kind({"images": "IMAGE"}, {"filename_prefix": ("STRING", "lbm")}, {}, (310, 270)),
}


@dataclass(frozen=True)
class Node:
    """A node of a graph.

    Attributes:
        place: column and height on the canvas.
        links: socket -> node and output.
        widgets: those that differ from the defaults.
        title: in place of the name of its class.
    """

    kind: str
    place: tuple[int, int]
    links: Mapping[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    widgets: Mapping[str, Any] = field(default_factory=dict[str, Any])
    title: str = ""


Graph = Mapping[str, Node]

_LOAD = {"model": Node("LbmLoraLoadModel", (0, 0)), "image": Node("LoadImage", (0, 160))}


def _translate(model: str, place: tuple[int, int], loaded: str = "model") -> Node:
    links = {"model": (model, "MODEL"), "vae": (loaded, "VAE"), "image": ("image", "IMAGE")}
    return Node("LbmLoraTranslate", place, links)


WORKFLOWS: dict[str, tuple[Graph, str]] = {
    "relight": (
        {
            **_LOAD,
            "lora": Node("LbmLoraLoadLora", (1, 0), {"model": ("model", "MODEL")}),
            "translate": _translate("lora", (2, 0)),
            "save": Node("SaveImage", (3, 0), {"images": ("translate", "IMAGE")}),
        },
        "Choose an LBM base, a LoRA for it, and an image: a subject pasted onto the background that lights it.",
    ),
    "relight_two_loras": (
        {
            **_LOAD,
            "lora": Node("LbmLoraLoadLora", (1, 0), {"model": ("model", "MODEL")}, {"strength": 0.5}),
            "lora2": Node("LbmLoraLoadLora", (1, 190), {"model": ("lora", "MODEL")}, {"strength": 0.5}),
            "translate": _translate("lora2", (2, 0)),
            "save": Node("SaveImage", (3, 0), {"images": ("translate", "IMAGE")}),
        },
        "LoRAs add up. Here the same one is applied twice at half strength; choose another file in the second node.",
    ),
    "extract_and_compare": (
        {
            **_LOAD,
            "extract": Node("LbmLoraExtract", (1, 0)),
            "tuned": Node("LbmLoraLoadModel", (1, 270), widgets={"checkpoint": LORA}),
            "apply": Node("LbmLoraApplyLora", (2, 0), {"model": ("model", "MODEL"), "lora": ("extract", "LBM_LORA")}),
            "save_lora": Node("LbmLoraSave", (2, 180), {"lora": ("extract", "LBM_LORA")}),
            "with_lora": _translate("apply", (3, 0)),
            "with_tuned": _translate("tuned", (3, 330), loaded="tuned"),
            "save": Node("SaveImage", (4, 0), {"images": ("with_lora", "IMAGE")}, title="base + LoRA"),
            "save_tuned": Node("SaveImage", (4, 330), {"images": ("with_tuned", "IMAGE")}, title="fine-tuned model"),
        },
        "Extract a LoRA from a base and a fine-tuned checkpoint, save it, and compare base + LoRA with the fine-tuned "
        "model.",
    ),
    "stock_loader": (
        {
            **_LOAD,
            "lora": Node("LoraLoaderModelOnly", (1, 0), {"model": ("model", "MODEL")}),
            "translate": _translate("lora", (2, 0)),
            "save": Node("SaveImage", (3, 0), {"images": ("translate", "IMAGE")}),
        },
        "ComfyUI's own LoRA loader. It needs a LoRA in the format comfyui: write one with the node Save LBM LoRA, or "
        "with lbm-lora convert --to comfyui. From a native file it loads nothing.",
    ),
}
"""Name -> graph, and what its note says."""


def as_api(graph: Graph) -> dict[str, Any]:
    """Return a graph as POST /prompt takes it."""
    ids = _ids(graph)
    return {
        str(ids[name]): {
            "class_type": node.kind,
            "inputs": {
                **{socket: [str(ids[other]), _slot(graph, other, out)] for socket, (other, out) in node.links.items()},
                **{widget: value for widget, value in _values(node) if not widget.startswith("*")},
            },
            "_meta": {"title": node.title or node.kind},
        }
        for name, node in graph.items()
    }


def as_ui(graph: Graph, note: str) -> dict[str, Any]:
    """Return a graph as the front end saves it."""
    ids = _ids(graph)
    links = [
        [number, ids[other], _slot(graph, other, out), ids[name], list(KINDS[node.kind].sockets).index(socket),
         KINDS[graph[other].kind].outputs[out]]
        for number, (name, node, socket, (other, out)) in enumerate(_links(graph), 1)
    ]  # fmt: skip
    nodes = [_ui_node(ids[name], node, links) for name, node in graph.items()]
    nodes.append(_note(len(ids) + 1, note))
    return {
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def _ui_node(number: int, node: Node, links: list[list[Any]]) -> dict[str, Any]:
    kind = KINDS[node.kind]
    optional = {"mask", "background"}
    inputs: list[dict[str, Any]] = [
        {
            "name": socket,
            "type": type_,
            "link": next((link[0] for link in links if link[3] == number and link[4] == slot), None),
            **({"shape": 7} if socket in optional else {}),
        }
        for slot, (socket, type_) in enumerate(kind.sockets.items())
    ]
    inputs += [
        {"name": widget, "type": type_, "widget": {"name": widget}, "link": None}
        for widget, (type_, _) in kind.widgets.items()
        if not widget.startswith("*")
    ]
    outputs = [
        {"name": name, "type": type_, "links": [link[0] for link in links if link[1] == number and link[2] == slot]}
        for slot, (name, type_) in enumerate(kind.outputs.items())
    ]
    return {
        "id": number,
        "type": node.kind,
        **({"title": node.title} if node.title else {}),
        "pos": [40 + 350 * node.place[0], 120 + node.place[1]],
        "size": list(kind.size),
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        "properties": {"Node name for S&R": node.kind},
        "widgets_values": [value for _, value in _values(node)],
    }


def _note(number: int, text: str) -> dict[str, Any]:
    return {
        "id": number,
        "type": "Note",
        "pos": [40, -40],
        "size": [660, 80],
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [text],
    }


def _ids(graph: Graph) -> dict[str, int]:
    return {name: number for number, name in enumerate(graph, 1)}


def _slot(graph: Graph, name: str, output: str) -> int:
    return list(KINDS[graph[name].kind].outputs).index(output)


def _links(graph: Graph) -> Iterator[tuple[str, Node, str, tuple[str, str]]]:
    for name, node in graph.items():
        for socket, origin in node.links.items():
            yield name, node, socket, origin


def _values(node: Node) -> list[tuple[str, Any]]:
    return [(widget, node.widgets.get(widget, default)) for widget, (_, default) in KINDS[node.kind].widgets.items()]


def texts() -> dict[str, str]:
    """Return path in the folder -> text."""
    found: dict[str, str] = {}
    for name, (graph, note) in WORKFLOWS.items():
        found[f"{name}.json"] = json.dumps(as_ui(graph, note), indent=1) + "\n"
        found[f"api/{name}.json"] = json.dumps(as_api(graph), indent=1) + "\n"
    return found


def copies() -> dict[str, Path]:
    """Return path in the repository -> the file of the pack that it is a copy of."""
    return {f"{FOLDER.name}/{path.name}": path for path in sorted(FOLDER.iterdir()) if path.is_file()}


if __name__ == "__main__":
    for file, text in texts().items():
        (FOLDER / file).write_text(text, encoding="utf-8")
    for place, file in copies().items():
        shutil.copy(file, ROOT / place)
