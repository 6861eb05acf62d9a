"""The run directory: every path in it, and the small files that launcher and ranks exchange.

<outputs>/<run>/
  job.toml  run.json  component.py      what runs, its record, its torchx component
  metrics.jsonl  validation.jsonl       one JSON object a line, written by rank 0
  logs/node-0.log                       what people read: the node entry point and rank 0
  logs/rank-0.log  rank-0.jsonl         raw stdout and stderr of a rank; its machine-readable log
  tb/  checkpoints/  profiles/
  attempts/1/exit.json                  why attempt 1 ended, by the first rank that knew
  STOP                                  exists: every rank stops at the next step boundary
  REQUEUE                               the trainer stopped before its last step
  EXCLUDE                               hosts that failed a preflight, separated by commas
  slurm_job  logs/slurm-<id>.log        id of its SLURM job; what the batch script and srun print
  train.sbatch | docker.sh | job.yaml   what its scheduler was given
  kubernetes.json  mirror/              where its pods are; how far their logs are read from afar
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

METRICS_MARK = "@metrics "
"""Starts the console line that carries one logged step as JSON, where only logs can be seen."""

ATTEMPT_MARK = "@attempt "
"""Starts the console line that carries an attempt as JSON, as it stands now, in pods."""

PREFLIGHT_MARK = "@preflight "
"""Starts the console line that carries one all-reduce test as JSON."""


@dataclass(frozen=True, slots=True)
class RankExit:
    """attempts/<n>/exit.json: how the first rank that ended an attempt ended."""

    code: int
    """Exit code of the run contract: 0, 2, 3, or another for a failure worth retrying."""
    rank: int
    """The rank; -1 = none in particular."""
    cause: str
    """The reason in one line."""
    traceback: str = ""
    """The Python traceback, where there was one."""
    step: int = -1
    """The step it happened in; -1 = outside of training."""


@dataclass(frozen=True, slots=True)
class RunLayout:
    """Paths of one run directory."""

    root: Path

    @property
    def job(self) -> Path:
        return self.root / "job.toml"

    @property
    def record(self) -> Path:
        return self.root / "run.json"

    @property
    def component(self) -> Path:
        return self.root / "component.py"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def validation(self) -> Path:
        return self.root / "validation.jsonl"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def profiles(self) -> Path:
        return self.root / "profiles"

    @property
    def attempts(self) -> Path:
        return self.root / "attempts"

    @property
    def stop(self) -> Path:
        return self.root / "STOP"

    @property
    def requeue(self) -> Path:
        return self.root / "REQUEUE"

    @property
    def exclude(self) -> Path:
        return self.root / "EXCLUDE"

    @property
    def slurm_job(self) -> Path:
        return self.root / "slurm_job"

    @property
    def kubernetes(self) -> Path:
        return self.root / "kubernetes.json"

    @property
    def mirror(self) -> Path:
        return self.root / "mirror"

    def slurm_log(self, job_id: str) -> Path:
        return self.logs / f"slurm-{job_id}.log"

    def node_log(self, node: int) -> Path:
        return self.logs / f"node-{node}.log"

    def rank_log(self, rank: int) -> Path:
        return self.logs / f"rank-{rank}.log"

    def rank_events(self, rank: int) -> Path:
        return self.logs / f"rank-{rank}.jsonl"

    def attempt(self, number: int) -> Path:
        return self.attempts / str(number)

    def preflight(self, number: int) -> Path:
        return self.attempts / "preflight" / str(number)

    def exit(self, number: int) -> Path:
        return self.attempt(number) / "exit.json"


def replace_file(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new, also after a crash."""
    scratch = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a power loss, which replacing a file leaves out."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_exit(path: Path, exit: RankExit) -> bool:
    """Write exit.json unless another rank was first; returns whether this one was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".exit.{os.getpid()}.{exit.rank}")
    scratch.write_text(json.dumps(asdict(exit)), encoding="utf-8")
    try:
        os.link(scratch, path)
    except FileExistsError:
        return False
    finally:
        scratch.unlink()
    return True


def read_exit(path: Path) -> RankExit | None:
    """Read exit.json; None where no rank wrote one."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return RankExit(**data)
