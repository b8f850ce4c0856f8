"""Shared by all themes: the pair, file locations, and side-by-side measurement of a command and its reference."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from benchmarks import command
from benchmarks.measure import JobFunction, Run, run_job, summary, warm
from benchmarks.perf import jobs
from benchmarks.perf.page import BLOCKS, TENSORS
from benchmarks.perf.pair import Pair, make_pair
from benchmarks.results import ROOT, WORK

RANK, CONV_RANK = 32, 16
LARGE = 0.4
"""Scale from which images have realistic sizes; below it they are small."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure (run), only make the pair of checkpoints (pair), or write the page of the newest results (report)."""

    what: Positional[Literal["run", "pair", "report"]] = "run"
    only: str = ""  # themes to run, separated by commas; default: all
    scale: float = 1.0  # scale of the networks' widths and depth: above 0, at most 1 (the real LBM)
    work: Path = WORK  # folder for checkpoints and outputs, 10 to 30 GB
    results: Path | None = None  # folder of result files; default: benchmarks/results, in --work for a scale below 1
    to: Path = ROOT / "docs" / "performance.md"  # page to write
    seed: int = 0  # seed for the weights of the pair
    repeats: int = 3  # alternating runs of each side of a ratio; the median counts
    cores: int = 2  # processor cores for the measured processes
    device: str = "cpu"  # device for extract and infer: cpu or cuda
    error_layers: int = 2  # modules per shape to measure the error of; 0: all
    keep: bool = False  # keep the outputs of the commands


@dataclass(frozen=True, kw_only=True)
class Job:
    """A process to measure, the files it reads, and those it writes."""

    function: JobFunction
    settings: Mapping[str, object]
    imports: Sequence[str] = ()
    inputs: Sequence[Path] = ()
    outputs: Sequence[Path] = ()


@dataclass
class Bench:
    """The options, and values derived from them once."""

    options: Options
    _made: set[Path] = field(default_factory=set[Path])

    @cached_property
    def pair(self) -> Pair:
        """Return the checkpoints for all measurements."""
        options = self.options
        return make_pair(options.work / f"pair-{options.scale:g}", scale=options.scale, seed=options.seed)

    @cached_property
    def files(self) -> dict[str, str]:
        """Return the pair's files, as settings of a job."""
        return {"base": str(self.pair.base), "tuned": str(self.pair.tuned)}

    @cached_property
    def lora(self) -> Path:
        """Return a LoRA of the pair with the default ranks, made by this run."""
        path = self.path("lora.safetensors")
        self.run(self.extract(path))
        return path

    @property
    def image_size(self) -> int:
        """Return the image side in pixels for calibration and training."""
        return 256 if self.options.scale >= LARGE else 64

    def path(self, name: str) -> Path:
        """Return the path of an output."""
        return self.options.work / f"out-{self.options.scale:g}" / name

    def extract(
        self,
        output: Path,
        *,
        rank: int = RANK,
        conv_rank: int | None = CONV_RANK,
        inputs: Sequence[Path] = (),
        **flags: Any,
    ) -> Job:
        """Return the job of `extract` on the pair."""
        stems = [f"{output.stem}_r{rank}" for rank in flags["ranks"]] if "ranks" in flags else [output.stem]
        outputs = [output.with_name(f"{stem}{end}") for stem in stems for end in (".safetensors", "_config.yaml")]
        flags = {"save_to": output, "rank": rank, "conv_rank": conv_rank, "device": self.options.device, **flags}
        return self.on_pair("extract", inputs=inputs, outputs=outputs, **flags)

    def on_pair(self, verb: str, *, inputs: Sequence[Path] = (), outputs: Sequence[Path] = (), **flags: object) -> Job:
        """Return the job of a command that reads both checkpoints and more inputs."""
        both = (self.pair.base, self.pair.tuned)
        flags = {"base_model_path": both[0], "tuned_model_path": both[1], **flags}
        return self.command(verb, inputs=(*both, *inputs), outputs=outputs, **flags)

    def command(self, verb: str, *, inputs: Sequence[Path], outputs: Sequence[Path] = (), **flags: object) -> Job:
        """Return the job of an `lbm-lora` command."""
        settings = {"line": command.arguments(verb, **flags)}
        imports = [f"lbm_lora.{module}" for module in ("cli.main", "cli.console", f"verbs.{verb}")]
        return Job(function=jobs.command, settings=settings, imports=imports, inputs=inputs, outputs=outputs)

    def bare_passes(self) -> dict[str, Job]:
        """Return the jobs that only read and subtract: in blocks that fit the cache, and tensor by tensor."""
        return {
            label: Job(
                function=jobs.bare_pass,
                settings={**self.files, "threads": self.options.cores, "blocked": blocked},
                inputs=(self.pair.base, self.pair.tuned),
            )
            for label, blocked in ((BLOCKS, True), (TENSORS, False))
        }

    def copy(self, targets: Sequence[Path]) -> Job:
        """Return the job that copies the base to each target."""
        settings = {"source": str(self.pair.base), "targets": [str(path) for path in targets]}
        return Job(function=jobs.copy, settings=settings, inputs=(self.pair.base,), outputs=targets)

    def run(self, job: Job) -> Run:
        """Run one measured process with its inputs in the page cache; its outputs stay."""
        warm(job.inputs)
        for output in job.outputs:
            output.parent.mkdir(parents=True, exist_ok=True)
        self._made |= set(job.outputs)
        return run_job(job.function, job.settings, cores=self.options.cores, imports=job.imports)

    def side_by_side(self, jobs: Mapping[str, Job], *, repeats: int | None = None) -> dict[str, dict[str, Any]]:
        """Run all jobs in turns and summarise each: times, memory, and bytes of the files read and written."""
        runs: dict[str, list[Run]] = {label: [] for label in jobs}
        for _ in range(repeats or self.options.repeats):
            for label, job in jobs.items():
                runs[label].append(self.run(job))
                print(f"  {label}: {runs[label][-1]}", flush=True)
        return {
            label: {
                **summary(runs[label]),
                "input_bytes": sum(path.stat().st_size for path in job.inputs),
                "output_bytes": sum(path.stat().st_size for path in job.outputs if path.exists()),
            }
            for label, job in jobs.items()
        }

    def drop(self, *paths: Path) -> None:
        """Remove outputs, unless they should be kept."""
        for path in () if self.options.keep else paths:
            with suppress(FileNotFoundError):
                path.unlink()

    def clean(self) -> None:
        """Remove all outputs of this run."""
        self.drop(*self._made)
