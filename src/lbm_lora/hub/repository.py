"""One revision of a repository of the Hugging Face hub: the list of its files, their headers, and the files.

The client of the hub is imported when it is used: most runs do without it. Without a network, what the client's cache
has of a repository stands for the repository.
"""

import glob
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from lbm_lora.checkpoint import open_checkpoint
from lbm_lora.errors import HubError, listing
from lbm_lora.hub.failures import hub_errors, is_absent_network
from lbm_lora.hub.names import HubName
from lbm_lora.progress import SILENT, Progress, warn

PATIENCE = 30.0
"""Seconds to wait for the hub's answer about a repository; for a part of a file the client's own limits hold."""


@dataclass(frozen=True)
class Repository:
    """A revision of a repository.

    Attributes:
        name: as the user gave it.
        commit: the commit that the revision is, so that list and files belong together.
        files: paths of its files.
        cached: the local folder, if it was found in the cache and not on the hub.
    """

    name: HubName
    commit: str
    files: tuple[str, ...]
    cached: Path | None = None

    def header(self, file: str) -> Mapping[str, str]:
        """Return the strings in a `.safetensors` header, without fetching the tensors.

        Raises:
            HubError: the file cannot be fetched, or has no such header.
        """
        if self.cached is not None:
            with open_checkpoint(self.cached / file) as opened:
                return opened.metadata
        from huggingface_hub import HfApi

        with _fetching(self.name):
            found = HfApi().parse_safetensors_file_metadata(
                self.name.repo, file, revision=self.commit, timeout=PATIENCE
            )
        return found.metadata or {}

    def fetch(self, files: Collection[str], progress: Progress = SILENT) -> Path:
        """Return the folder in the cache that has these files of the repository, fetched if they are not there.

        Raises:
            HubError: a file cannot be fetched; nothing incomplete is kept under its name.
        """
        if self.cached is not None:
            return self.cached
        from huggingface_hub import snapshot_download

        progress.start(0, f"fetching {self.name}")
        with _fetching(self.name):
            exactly = [glob.escape(file) for file in files]
            return Path(snapshot_download(self.name.repo, revision=self.commit, allow_patterns=exactly))

    def missing(self, file: str) -> HubError:
        """The error for a file that it does not have."""
        near = get_close_matches(file, self.files, n=1, cutoff=0.5)
        hint = f"Did you mean {self.name.repo}/{near[0]}?" if near else f"It holds {listing(self.files) or 'no files'}."
        return HubError(f"{self.name.repo} on the Hugging Face hub has no file {file}{self._at()}. {hint}")

    def _at(self) -> str:
        return f" at {self.name.revision}" if self.name.revision else ""


def open_repository(name: HubName) -> Repository:
    """Look a repository up on the hub; if there is no network, in the cache.

    Raises:
        HubError: it does not exist, may not be read, or cannot be reached and is not in the cache.
    """
    from huggingface_hub import HfApi

    with _fetching(name):
        try:
            info = HfApi().model_info(name.repo, revision=name.revision, timeout=PATIENCE)
        except Exception as error:
            found = _in_cache(name) if is_absent_network(error) else None
            if found is None:
                raise
        else:
            return Repository(name, str(info.sha), tuple(sorted(one.rfilename for one in info.siblings or ())))
    warn(
        f"{name}: the Hugging Face hub cannot be reached. What was fetched earlier is used, of commit "
        f"{found.commit[:7]}; the repository may have more."
    )
    return found


def _in_cache(name: HubName) -> Repository | None:
    """Return what the cache has of a repository."""
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return None
    revision = name.revision or "main"
    for one in (rev for repo in repos if repo.repo_id == name.repo for rev in repo.revisions):
        if revision in (one.commit_hash, *one.refs):
            folder = one.snapshot_path
            files = tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))
            return Repository(name, one.commit_hash, files, folder)
    return None


def _fetching(name: HubName) -> AbstractContextManager[None]:
    return hub_errors(f"{name} is not a local path, and cannot be fetched from the Hugging Face hub", repo=name.repo)
