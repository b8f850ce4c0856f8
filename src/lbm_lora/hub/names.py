"""Names on the Hugging Face hub, where a path may stand too. Nothing is looked up here.

    user/repo                               a repository
    user/repo/folder/file.safetensors       a file in it
    user/repo@revision                      at a branch, a tag or a commit; refs/pr/1 is a pull request
    user/repo/file@revision, user/repo@revision/file
    hf://user/repo                          the same, even if a local folder is called `user`

Whatever looks local is local. So a path with a typo is not sent to a server.
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from lbm_lora.errors import ConfigError

_REPO = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_REVISION = r"refs/(?:pr|convert)/[^/@]+|[^/@]+"
_NAME = re.compile(rf"(?P<repo>{_REPO})(?:@(?P<early>{_REVISION}))?(?:/(?P<file>[^@]+?))?/?(?:@(?P<late>[^@]+))?")
_SCHEME = re.compile(r"hf:/{1,2}(?=[^/])")  # a Path has one slash
_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".json", ".yaml")

FORMS = "user/repo, user/repo/file.safetensors, or either with @revision"


@dataclass(frozen=True)
class HubName:
    """A repository on the hub, or a file in it.

    Attributes:
        repo: `user/repo`.
        file: path of a file or folder in it; empty for the repository.
        revision: branch, tag or commit; None for the main branch.
    """

    repo: str
    file: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        """As a user writes it."""
        return "/".join(filter(None, (self.repo, self.file))) + (f"@{self.revision}" if self.revision else "")

    @property
    def stem(self) -> str:
        """Name for what is made from it: that of the file, else of the repository."""
        return PurePosixPath(self.file).stem or self.repo.partition("/")[2]


def hub_name(path: Path | str) -> HubName | None:
    """Return the name on the hub that a path is, or None if it is a local path.

    A path is local if it exists, if its first folder does, if it starts with `.`, `~`, `/` or a drive, or if it has
    two parts and the suffix of a file. With `hf://` it is never local.
    """
    written = path if isinstance(path, str) else path.as_posix()
    scheme = _SCHEME.match(written)
    if scheme is None and _is_local(written):
        return None
    found = _NAME.fullmatch(written[scheme.end() :] if scheme else written)
    if found is not None and not (found["early"] and found["late"]):
        revision = found["early"] or found["late"]
        return HubName(found["repo"], found["file"] or "", unquote(revision) if revision else None)
    if scheme is None:
        return None
    raise ConfigError(f"{written} does not name a repository or a file of the Hugging Face hub. Write hf://{FORMS}.")


def _is_local(written: str) -> bool:
    path = Path(written)
    first, *further = written.split("/")
    if not further or not first or first.startswith((".", "~")) or ":" in first or "\\" in written:
        return True
    return Path(first).exists() or (len(further) == 1 and path.suffix.lower() in _SUFFIXES)
