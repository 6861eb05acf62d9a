"""Cancelling, killing and starting again what SLURM runs."""

import time

from titan_recipes.config.job import read_job
from titan_recipes.errors import LaunchError
from titan_recipes.launch.run_end import closed
from titan_recipes.launch.runs import Run, open_run
from titan_recipes.launch.slurm_queue import QueuedJob, find_job, scancel
from titan_recipes.launch.slurm_state import slurm_job
from titan_recipes.launch.slurm_submit import script_of, submit
from titan_recipes.launch.state import run_status
from titan_recipes.launch.stop import CANCEL_WORD, KILL_WORD, KILLED
from titan_recipes.render import Submission

POLL_SECONDS = 0.1
SIGNAL_SECONDS = 1.0  # between two signals to the nodes
KILL_SECONDS = 10.0  # for the nodes to kill their ranks and say so
END_SECONDS = (
    120.0  # for SLURM to end a cancelled job: its KillWait is 30 s where nobody changed it
)


def leave_queue(run: Run, job: QueuedJob) -> Run:
    """Take a job that waits out of the queue."""
    run.layout.stop.write_text(CANCEL_WORD, encoding="utf-8")
    scancel(job.id)
    _await_end(job)
    return closed(open_run(run.layout.root), "cancelled while it waited in the queue")


def _await_end(job: QueuedJob) -> None:
    """Wait until a cancelled job is over. Raises LaunchError where SLURM does not end it."""
    deadline = time.monotonic() + END_SECONDS
    while (now := find_job(job.id)) and not now.has_ended:
        if time.monotonic() > deadline:
            cure = f"see: scontrol show job {job.id}"
            raise LaunchError(f"SLURM job {job.id}: still {now.state} after scancel; {cure}")
        time.sleep(POLL_SECONDS)


def kill_job(run: Run) -> Run:
    """End a run's SLURM job: its nodes are told twice, so that they write down how it ended."""
    run.layout.stop.write_text(KILL_WORD, encoding="utf-8")
    job = find_job(slurm_job(run.layout, run.record))
    if job is None or job.has_ended:
        return open_run(run.layout.root)
    deadline = time.monotonic() + KILL_SECONDS
    while job.state == "RUNNING" and time.monotonic() < deadline:
        if run_status(run.layout).state.is_final:
            break
        scancel(job.id, "--signal=TERM")
        time.sleep(SIGNAL_SECONDS)
    scancel(job.id)
    _await_end(job)
    return closed(open_run(run.layout.root), KILLED)


def start_in_slurm(run: Run, log_offset: int) -> None:
    """Submit another job."""
    job = read_job(run.layout.job)
    submit(run.layout, script_of(job, Submission(run_dir=str(run.layout.root), resumed=True)))
