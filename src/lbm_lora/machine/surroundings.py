"""The surroundings of the process: state of the hub's client, environment variables, encoding of texts."""

import codecs
import os
import sys
from urllib.parse import urlsplit

from lbm_lora.machine.check import Check, check
from lbm_lora.threads import thread_choice

_PUBLIC = "https://huggingface.co"
_SHOWN = (
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "PYTHONIOENCODING",
    "PYTHONOPTIMIZE",
    "PYTHONUTF8",
    "TMPDIR",
)
_SECRET = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "HTTPS_PROXY")
"""Their values may hold passwords: only that they are set is shown."""


def hub_checks() -> list[Check]:
    """Check where the hub is, whether it may be reached, and whether there is a token, which is never shown."""
    from huggingface_hub import constants, get_token

    found: list[Check] = []
    if constants.HF_HUB_OFFLINE:
        remedy = "Only repositories in the cache can be read. Unset HF_HUB_OFFLINE to fetch others."
        found.append(check("hub", "offline (HF_HUB_OFFLINE)", level="note", remedy=remedy))
    elif str(constants.ENDPOINT) != _PUBLIC:
        remedy = "A mirror may lack repositories. Unset HF_ENDPOINT for the public hub."
        found.append(check("hub", without_password(constants.ENDPOINT), level="note", remedy=remedy))
    else:
        found.append(check("hub", f"{_PUBLIC}, not contacted"))
    if get_token() is not None:
        found.append(check("hub token", "set, not shown"))
    else:
        found.append(check("hub token", "none; only push and private repositories need one: hf auth login"))
    return found


def environment_check() -> Check:
    """List the environment variables that matter."""
    _, is_fixed = thread_choice()
    names = [name for name in _SHOWN if name in os.environ and (name != "OMP_NUM_THREADS" or is_fixed)]
    names += sorted(name for name in os.environ if name.startswith("PYTORCH_"))
    shown = [f"{name}={os.environ[name]}" for name in names]
    shown += [f"{name} set" for name in _SECRET if name in os.environ]
    return check("environment", ", ".join(shown) or "none of the variables that matter is set")


def text_check() -> Check:
    """Check the encoding of names and of what is printed."""
    output = getattr(sys.stdout, "encoding", None) or "utf-8"
    names = sys.getfilesystemencoding()
    text = f"{names} for file names, {output} for output"
    if all(_is_utf8(encoding) for encoding in (names, output)):
        return check("encoding", text)
    remedy = "Names with other letters are shown escaped, or not found. Set PYTHONUTF8=1."
    return check("encoding", text, level="note", remedy=remedy)


def without_password(url: str) -> str:
    """A URL without user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _is_utf8(encoding: str) -> bool:
    try:
        return codecs.lookup(encoding).name == "utf-8"
    except LookupError:
        return False
