"""ComfyUI as a separate process, driven by its HTTP API. Nothing of it is imported."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).parents[2]
PACKS = {"lbm-lora": ROOT / "integrations/comfyui", "kijai-shape": ROOT / "tests/comfy/kijai_shape"}
Prompt = dict[str, dict[str, Any]]
Pixels = NDArray[np.int64]


@dataclass(frozen=True)
class Run:
    """What ComfyUI's history says of a prompt."""

    status: str
    outputs: dict[str, Any]
    messages: list[Any]

    @property
    def error(self) -> str:
        """The line in the box of the node that failed."""
        return next((m[1]["exception_message"].strip() for m in self.messages if m[0] == "execution_error"), "")


class Refused(Exception):
    """The server refused a prompt; its answer is the argument."""


class ComfyServer:
    """A running ComfyUI with our pack alone.

    Args:
        comfyui: folder of ComfyUI.
        python: interpreter with ComfyUI's requirements.
        base: base directory, made here; its files are those that ComfyUI lists.
        packs: name -> folder of a pack, which is linked, unless something of that name is there already; no other pack
            is loaded.
        arguments: more of them.
        is_installed: lbm-lora is, as far as ComfyUI's Python can see: this repository's.
    """

    def __init__(
        self,
        comfyui: Path,
        python: Path,
        base: Path,
        *,
        packs: Mapping[str, Path] = PACKS,
        arguments: Sequence[str] = (),
        is_installed: bool = True,
    ) -> None:
        self.base, self.log = base, base / "server.log"
        for folder in ("custom_nodes", "models/diffusion_models", "models/loras", "input", "output", "temp", "user"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        for name, folder in packs.items():
            link = base / "custom_nodes" / name
            if not link.exists():
                link.symlink_to(folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [
            *(str(python), "main.py", "--cpu", "--base-directory", str(base), "--port", str(self.port)),
            *("--database-url", "sqlite:///:memory:", "--disable-api-nodes", "--disable-auto-launch"),
            *("--disable-all-custom-nodes", "--whitelist-custom-nodes", *packs, *arguments),
        ]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src") if is_installed else "", "OMP_NUM_THREADS": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=comfyui, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._wait_until_up()

    def _wait_until_up(self) -> None:
        end = time.monotonic() + 180
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                self.get("/queue")
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.3)
            else:
                return
        self.stop()
        raise AssertionError(f"ComfyUI does not answer:\n{self.log.read_text()[-4000:]}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return json.load(answer)

    def post(self, path: str, body: object) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise Refused(error.read().decode()) from None
        return json.loads(text) if text else None

    def queue(self, prompt: Prompt) -> str:
        return self.post("/prompt", {"prompt": prompt, "client_id": uuid.uuid4().hex})["prompt_id"]

    def wait(self, prompt_id: str, seconds: float = 300) -> Run:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.get(f"/history/{prompt_id}").get(prompt_id)
            if found is not None:
                status = found["status"]
                return Run(status["status_str"], found["outputs"], status["messages"])
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError(f"no result of {prompt_id}:\n{self.log.read_text()[-4000:]}")

    def run(self, prompt: Prompt) -> Run:
        return self.wait(self.queue(prompt))

    def images(self, prompt: Prompt) -> list[Pixels]:
        """Run a prompt, and return the images of its SaveImage nodes in their order."""
        run = self.run(prompt)
        assert run.status == "success", run.error or run.messages
        nodes = [name for name, one in prompt.items() if one["class_type"] == "SaveImage"]
        return [self.image(one) for node in nodes for one in run.outputs[node]["images"]]

    def image(self, found: dict[str, str]) -> Pixels:
        query = urllib.parse.urlencode(found)
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/view?{query}", timeout=30) as answer:
            return np.array(Image.open(BytesIO(answer.read())).convert("RGB")).astype(np.int64)

    @property
    def resident_mb(self) -> float:
        """Memory of the process, in MB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def logged(self) -> str:
        return self.log.read_text()


def python_of(comfyui: Path) -> Path:
    """Return COMFYUI_PYTHON, a venv in or next to ComfyUI's folder, or this interpreter."""
    given = os.environ.get("COMFYUI_PYTHON")
    found = [folder / name / "bin/python" for folder in (comfyui, comfyui.parent) for name in (".venv", "venv")]
    return Path(given) if given else next((path for path in found if path.exists()), Path(sys.executable))
