"""The options of the verb `data check`."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Read a data set through, every pixel of it, and report."""

    data: Positional[tuple[str, ...]] = ()
    """A folder of pairs or of shards, or shards: paths, URLs, patterns with {000..009}."""
    path_config: Path | None = None
    """In place of them a training file: its data are checked, with its keys and sizes."""
    source_key: str = "source.jpg"
    target_key: str = "target.jpg"
    mask_key: str | None = None
    image_size: tuple[int, ...] = (512,)
    """Square roots of the pixel budgets that training will use."""
    batch_size: int = 8
    """Of all processes together, for the number of steps."""
    num_workers: int = 0
    """Processes that read."""
    cache_dir: Path | None = None
    """Folder that shards from URLs are copied into."""
    allow_pipe: bool = False
    """Allow `pipe:` shards, which run a shell command."""
    max_corrupt: float = 0.05
    """Share of unreadable or incomplete samples above which the check fails."""
