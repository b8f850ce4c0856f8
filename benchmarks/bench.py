"""What all themes share: the pair, where files go, and how our command and its reference are measured side by side."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.machine import require_space
from benchmarks.measure import Run, run_job, summary, warm
from benchmarks.pair import Pair, make_pair

RANK, CONV_RANK = 32, 16
REDUCED = 0.4  # scale of what is only measured on narrower networks: widths of 128, 256 and 512
LORA_BYTES = 0.04  # of a rank 32/16 adapter in bf16, as a share of the checkpoint
FULL_BYTES = 1.5  # of a full-rank one


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured.

    Attributes:
        work: folder for checkpoints and outputs.
        scale: of the pair; 1 is the real LBM.
        seed: of the pair.
        repeats: runs of each side of a ratio, in turns; the median counts.
        cores: that the measured processes may use.
        device: of extract and infer.
        error_layers: modules of each shape in the error's sample; 0 is all.
        keep: whether outputs stay in the work folder.
    """

    work: Path
    scale: float = 1.0
    seed: int = 0
    repeats: int = 3
    cores: int = 2
    device: str = "cpu"
    error_layers: int = 2
    keep: bool = False


@dataclass(frozen=True, kw_only=True)
class Job:
    """A process to measure: a job of `benchmarks.child`, the files it reads, and those it writes."""

    name: str
    settings: Mapping[str, object]
    inputs: Sequence[Path] = ()
    outputs: Sequence[Path] = ()
    cores: int | None = None


@dataclass
class Bench:
    """The options and what is made of them once."""

    options: Options
    _made: set[Path] = field(default_factory=set[Path])

    @cached_property
    def pair(self) -> Pair:
        options = self.options
        return make_pair(options.work / f"pair-{options.scale:g}", scale=options.scale, seed=options.seed)

    @property
    def files(self) -> dict[str, str]:
        return {"base": str(self.pair.base), "tuned": str(self.pair.tuned)}

    @property
    def both(self) -> tuple[Path, Path]:
        return self.pair.base, self.pair.tuned

    @cached_property
    def adapter(self) -> Path:
        """A LoRA of the pair with the default ranks, made by this run."""
        path = self.path("lora.safetensors")
        self.run(self.extract(path))
        return path

    def path(self, name: str) -> Path:
        return self.options.work / f"out-{self.options.scale:g}" / name

    def room(self, checkpoints: float, what: str) -> None:
        """Refuse early where the disk does not hold outputs of so many checkpoints."""
        require_space(self.options.work, int(checkpoints * self.pair.nbytes), what)

    def extract(
        self,
        output: Path,
        *,
        rank: int = RANK,
        conv_rank: int = CONV_RANK,
        precision: str = "bf16",
        device: str | None = None,
        pair: Pair | None = None,
        more: Sequence[str] = (),
    ) -> Job:
        """The command `extract` on the pair."""
        base, tuned = (pair.base, pair.tuned) if pair else self.both
        arguments = {"rank": rank, "conv_rank": conv_rank, "save_precision": precision}
        arguments |= {"device": device or self.options.device}
        return self.command(
            "extract",
            {"base_model_path": base, "tuned_model_path": tuned, "save_to": output, **arguments},
            inputs=(base, tuned),
            outputs=(output, output.with_name(f"{output.stem}_config.yaml")),
            more=more,
        )

    def command(
        self,
        verb: str,
        flags: Mapping[str, object],
        *,
        inputs: Sequence[Path] = (),
        outputs: Sequence[Path] = (),
        more: Sequence[str] = (),
    ) -> Job:
        """A whole `lbm-lora` command."""
        words = [verb, *(str(word) for flag, value in flags.items() for word in (f"--{flag}", value)), *more]
        return Job(name="command", settings={"arguments": words}, inputs=inputs, outputs=outputs)

    def bare_pass(self, *, threads: int = 2, blocked: bool = True) -> Job:
        settings = {**self.files, "threads": threads, "blocked": blocked}
        return Job(name="bare_pass", settings=settings, inputs=self.both, cores=threads)

    def run(self, job: Job) -> Run:
        """One measured process, its inputs in the page cache; what it writes stays."""
        warm(job.inputs)
        for output in job.outputs:
            output.parent.mkdir(parents=True, exist_ok=True)
        self._made |= set(job.outputs)
        return run_job(job.name, job.settings, cores=job.cores or self.options.cores)

    def side_by_side(self, jobs: Mapping[str, Job], *, repeats: int | None = None) -> dict[str, dict[str, Any]]:
        """Run all jobs in turns and sum up each: times, memory, and bytes of the files read and written."""
        runs: dict[str, list[Run]] = {label: [] for label in jobs}
        for _ in range(repeats or self.options.repeats):
            for label, job in jobs.items():
                runs[label].append(self.run(job))
                say(label, runs[label][-1])
        return {
            label: {
                **summary(runs[label]),
                "input_bytes": sum(path.stat().st_size for path in job.inputs),
                "output_bytes": sum(path.stat().st_size for path in job.outputs if path.exists()),
            }
            for label, job in jobs.items()
        }

    def drop(self, *paths: Path) -> None:
        """Remove outputs, unless they are to be kept."""
        if self.options.keep:
            return
        for path in paths:
            with suppress(FileNotFoundError):
                path.unlink()

    def clean(self) -> None:
        """Remove all outputs that this run has made."""
        self.drop(*self._made)


Theme = Callable[[Bench], dict[str, Any]]


def ratios(ours: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, float]:
    """Our times over the reference's: of the work after imports, of the whole process, and of CPU time."""
    return {name: round(ours[name] / reference[name], 4) for name in ("work_s", "wall_s", "cpu_s", "work_cpu_s")}


def say(label: str, run: Run) -> None:
    print(
        f"  {label}: {run.work_s:.2f} s after imports, {run.wall_s:.2f} s in all, CPU {run.cpu_s:.2f} s, "
        f"{run.anon_bytes / 1e9:.2f} GB anonymous",
        flush=True,
    )
