"""One job in SLURM's queue: submitted, looked at, ended. Needs no sacct: not all have it."""

import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from titan_recipes.errors import LaunchError
from titan_recipes.launch.slurm_ask import run

ASK_SECONDS = 2.0
"""How old an answer about a job may be: who follows a run looks much oftener than SLURM likes."""
ASK_AGAIN_SECONDS = 30.0
"""... and one that did not come: squeue takes 18 s to find that the controller is down."""
ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "REVOKED", "TIMEOUT",
}  # fmt: skip
"""States that a job does not leave by itself."""
UNKNOWN_JOB = re.compile(r"Invalid job id|Invalid job array")
OVER = re.compile(r"Invalid job id|already completing|already completed")
FORMAT = "%T|%r|%M|%S|%D|%N"


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """What squeue says of a job."""

    id: str
    state: str
    """SLURM's own word: PENDING, RUNNING, COMPLETING, FAILED ..."""
    reason: str
    """Why it waits or failed, in SLURM's words; "" = none."""
    elapsed: str
    """Time it has run since it last started, as SLURM writes it: 1-02:30:00."""
    start: str
    """When it started, or is expected to; "" = unknown."""
    num_nodes: int
    nodes: str
    """Its nodes in SLURM's short form; "" = none yet."""

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED


# Job id -> (until when the answer counts, the answer).
_asked: dict[str, tuple[float, QueuedJob | LaunchError | None]] = {}


def find_job(job_id: str) -> QueuedJob | None:
    """A job as squeue knows it, at most ASK_SECONDS ago; None where SLURM has forgotten it.

    Raises LaunchError where SLURM can't be asked.
    """
    until, answer = _asked.get(job_id, (0.0, None))
    if time.monotonic() > until:
        try:
            answer, fresh_seconds = _find(job_id), ASK_SECONDS
        except LaunchError as error:
            answer, fresh_seconds = error, ASK_AGAIN_SECONDS
        _asked[job_id] = (time.monotonic() + fresh_seconds, answer)
    if isinstance(answer, LaunchError):
        raise answer
    return answer


def _find(job_id: str) -> QueuedJob | None:
    asked = (f"--jobs={job_id}", "--states=all", "--array")
    done = run("squeue", *asked, "--noheader", f"--format={FORMAT}")
    if done.returncode and not UNKNOWN_JOB.search(done.stderr):
        raise LaunchError(f"squeue: {_said(done)}")
    lines = done.stdout.splitlines()
    if not lines:
        return None
    state, reason, elapsed, start, num_nodes, nodes = lines[0].split("|", 5)
    return QueuedJob(
        id=job_id,
        state=state,
        reason="" if reason == "None" else reason,
        elapsed=elapsed,
        start="" if start == "N/A" else start,
        num_nodes=int(num_nodes),
        nodes=nodes.strip("()"),
    )


def sbatch(script: Path) -> str:
    """Submit a script; the job's id. Raises LaunchError with what sbatch said.

    The shell's own SBATCH_* and SLURM_* variables, such as those of a job that one submits from,
    would win over the script: they are left out.
    """
    mine = {
        name: value
        for name, value in os.environ.items()
        if name == "SLURM_CONF" or not name.startswith(("SBATCH_", "SLURM_"))
    }
    done = run("sbatch", "--parsable", str(script), env=mine)
    if done.returncode:
        raise LaunchError(f"sbatch: {_said(done)}; see also: titan-recipes cluster check")
    return done.stdout.strip().partition(";")[0]  # id;cluster


def scancel(job_id: str, *options: str) -> None:
    """Cancel or signal a job; one that has ended is left alone. Raises LaunchError."""
    done = run("scancel", *options, job_id)
    _asked.pop(job_id, None)
    if done.returncode and not OVER.search(done.stderr):
        raise LaunchError(f"scancel {job_id}: {_said(done)}")


def _said(done: subprocess.CompletedProcess[str]) -> str:
    """What a command said on its way out, in one line."""
    named = r"^\w+( error: |: (error: )?)"  # "squeue: error: ", "slurm_load_jobs error: "
    lines = [re.sub(named, "", line) for line in done.stderr.splitlines() if line]
    return " / ".join(lines) or f"exit {done.returncode}"
