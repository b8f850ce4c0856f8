"""huggingface_hub on the stand-in server, in this process, with a cache of its own."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch
from warnings import catch_warnings, filterwarnings

from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http, disable_progress_bars, enable_progress_bars

from hub_server import TOKEN, HubServer

_IMPATIENT = SimpleNamespace(sleep=lambda seconds: None)
"""In place of `time` where the client waits before it tries again."""


@contextmanager
def hub_of(server: HubServer, folder: Path, token: str | None = TOKEN) -> Generator[HubServer]:
    """Let the client use a server within a `with` block; see HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_DISABLE_XET.

    The client reads those variables when it is imported, so its constants are replaced.
    """
    values = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(folder / "hf"),
        "HF_TOKEN_PATH": str(folder / "token"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
    }
    with ExitStack() as stack:
        for name, value in values.items():
            stack.enter_context(patch.object(constants, name, value))
        stack.enter_context(patch.dict("os.environ", {"HF_TOKEN": token or ""}))
        for module in (_http, file_download):
            stack.enter_context(patch.object(module, "time", _IMPATIENT))
        stack.enter_context(catch_warnings())
        filterwarnings("ignore", "Use 'content=", DeprecationWarning)  # the client's own use of its HTTP library
        disable_progress_bars()
        stack.callback(enable_progress_bars)
        yield server
