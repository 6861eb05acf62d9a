"""Stopping and resuming a run from any shell.

Stopping is asking: the stop file appears, the trainer saves and ends, the node entry point writes
down how. Only `kill` signals anything, and only where the node entry point no longer answers is the
record written in its place. Resuming starts the node entry point again on the same directory; a
lock makes sure that of two shells that resume at once, one does. A run under SLURM is resumed by
another job; while its job waits in the queue, cancelling it is cancelling that.
"""

import errno
import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from titan_recipes.config.cluster import Cluster, check_fits, check_time
from titan_recipes.config.job import Job, read_job, to_toml
from titan_recipes.config.layout import replace_file
from titan_recipes.errors import ConfigError, LaunchError
from titan_recipes.launch.attempts import check_kept, newest_checkpoint, saves
from titan_recipes.launch.changes import change
from titan_recipes.launch.logs import Tail
from titan_recipes.launch.record import (
    Attempt,
    is_alive,
    now,
    process_start,
    read_record,
    write_record,
)
from titan_recipes.launch.runs import Run, open_run
from titan_recipes.launch.slurm_queue import QueuedJob, find_job, scancel
from titan_recipes.launch.slurm_submit import script_of, submit
from titan_recipes.launch.state import (
    SLURM_SCHEDULERS,
    START_TIMEOUT_SECONDS,
    RunState,
    run_status,
    slurm_job,
)
from titan_recipes.launch.status import checkpoint_folder
from titan_recipes.launch.stop import CANCEL_WORD, KILL_WORD, KILLED
from titan_recipes.launch.titan_local import resume_node
from titan_recipes.launch.torchrun import end_orphans
from titan_recipes.render import Submission

POLL_SECONDS = 0.1
SIGNAL_SECONDS = 1.0  # between two signals to the nodes
END_SECONDS = (
    120.0  # for SLURM to end a cancelled job: its KillWait is 30 s where nobody changed it
)
ANSWER_SECONDS = 30.0  # beyond grace_seconds, for the node entry point to end and say so
KILL_SECONDS = 10.0  # for the node entry point to kill its ranks and say so


@contextmanager
def _ours(run: Run, verb: str) -> Generator[None]:
    """Raises LaunchError where the system forbids what is done to a run inside."""
    try:
        yield
    except PermissionError as error:
        why = f"not yours to {verb}: {error.strerror}"
        raise LaunchError(f"{run.name}: {why}; ask the owner of {run.layout.root}") from error


def cancel(run: Run, *, waiting: Callable[[float], None]) -> Run:
    """Ask a run to save and stop, and wait until it has; the run as it ended.

    waiting: called with the seconds waited so far. Raises LaunchError where the run does not stop
    within fault_tolerance.grace_seconds, with what to do.
    """
    job = run.job()
    grace = job.fault_tolerance.grace_seconds if job else 0
    began = time.monotonic()
    while not (status := run_status(run.layout)).state.is_final:
        waited = time.monotonic() - began
        if status.job and status.state is RunState.PENDING and status.job.state == "PENDING":
            return _leave_queue(run, status.job)
        if waited > grace + ANSWER_SECONDS:
            return _unanswered(open_run(run.layout.root), waited)
        with _ours(run, "stop"):
            # Again and again: an attempt that begins takes an old one away.
            run.layout.stop.write_text(CANCEL_WORD, encoding="utf-8")
        waiting(waited)
        time.sleep(POLL_SECONDS)
    return open_run(run.layout.root)


def _unanswered(run: Run, waited: float) -> Run:
    """A node that neither stopped nor killed its ranks in time: gone with its host, or stuck."""
    last = run.record.attempts[-1] if run.record.attempts else None
    in_slurm = run.record.scheduler in SLURM_SCHEDULERS
    if last and last.host != socket.gethostname() and not in_slurm:
        return _close(run, last, f"lost: {last.host} did not answer for {waited:.0f} s")
    kill = f"titan-recipes cancel {run.word} --now"
    raise LaunchError(f"{run.name}: not stopped after {waited:.0f} s; kill it: {kill}")


def _leave_queue(run: Run, job: QueuedJob) -> Run:
    """Take a job that waits out of the queue."""
    with _ours(run, "stop"):
        run.layout.stop.write_text(CANCEL_WORD, encoding="utf-8")
    scancel(job.id)
    _await_end(job)
    return _closed(open_run(run.layout.root), "cancelled while it waited in the queue")


def _await_end(job: QueuedJob) -> None:
    """Wait until a cancelled job is over. Raises LaunchError where SLURM does not end it."""
    deadline = time.monotonic() + END_SECONDS
    while (now := find_job(job.id)) and not now.has_ended:
        if time.monotonic() > deadline:
            cure = f"see: scontrol show job {job.id}"
            raise LaunchError(f"SLURM job {job.id}: still {now.state} after scancel; {cure}")
        time.sleep(POLL_SECONDS)


def _closed(run: Run, cause: str) -> Run:
    """The run, its last attempt closed where nobody is left who could."""
    last = run.record.attempts[-1] if run.record.attempts else None
    return run if last is None or last.final else _close(run, last, cause)


def kill(run: Run) -> Run:
    """End a run at once, without a checkpoint; the run as it ended. Raises LaunchError."""
    with _ours(run, "stop"):
        return _kill_job(run) if run.record.scheduler in SLURM_SCHEDULERS else _kill(run)


def _kill_job(run: Run) -> Run:
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
    return _closed(open_run(run.layout.root), KILLED)


def _kill(run: Run) -> Run:
    run.layout.stop.write_text(KILL_WORD, encoding="utf-8")
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not (attempts := read_record(run.layout).attempts):  # launched a moment ago
        if time.monotonic() > deadline or run_status(run.layout).state.is_final:
            return open_run(run.layout.root)
        time.sleep(POLL_SECONDS)
    last = attempts[-1]
    if last.host != socket.gethostname():
        raise LaunchError(f"{run.name}: runs on {last.host}; type this there, or leave out --now")
    deadline = time.monotonic() + KILL_SECONDS
    while is_alive(last):
        patient = time.monotonic() < deadline  # from the second SIGTERM on, it kills its ranks
        _signal(last.pid, signal.SIGTERM if patient else signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    end_orphans(run.layout)
    return _closed(open_run(run.layout.root), KILLED)


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _close(run: Run, last: Attempt, cause: str) -> Run:
    """Write down the end of an attempt whose node entry point can't any more."""
    step = newest_checkpoint(checkpoint_folder(run.layout, run.job()))
    last = replace(last, outcome="stopped", cause=cause, ended=now(), step_to=step, final=True)
    write_record(run.layout, run.record.with_attempt(last))
    return open_run(run.layout.root)


def resume(
    run: Run, overrides: Sequence[str] = (), cluster: tuple[str, Cluster] | None = None
) -> int:
    """Start a run that has ended again; returns the size its node log had before.

    overrides: `section.key=value` for `CHANGEABLE` keys; cluster: name and profile that takes the
    place of the one that a run under SLURM was launched with. Returns once the new attempt has
    begun, or its job is in SLURM's queue.
    Raises ConfigError or LaunchError where it can't be resumed; nothing is changed then.
    """
    layout = run.layout
    start = STARTERS.get(run.record.scheduler)
    if start is None:
        raise LaunchError(f"{run.name}: can't resume a run of {run.record.scheduler} from here")
    with _ours(run, "resume"), _alone(run):
        run = open_run(layout.root)
        state = run_status(layout, run.record).state
        if not state.is_final:
            stop = f"stop it first: titan-recipes cancel {run.word}"
            raise LaunchError(f"{run.name}: is still {state.value}; {stop}")
        job = read_job(layout.job)
        changed = change(job, overrides)
        if cluster is not None:
            changed = _moved(run, changed, *cluster)
        _check_unfinished(run, job, changed, state)
        end_orphans(layout)
        text = layout.job.read_text(encoding="utf-8")
        if changed != job:
            replace_file(layout.job, to_toml(changed))
        layout.stop.unlink(missing_ok=True)
        layout.requeue.unlink(missing_ok=True)
        log = layout.node_log(0)
        offset = log.stat().st_size if log.exists() else 0
        try:
            start(run, offset)
        except BaseException:
            if not _began(run):
                replace_file(layout.job, text)
            raise
    return offset


def _moved(run: Run, job: Job, name: str, cluster: Cluster) -> Job:
    """The job under another profile. Raises LaunchError or ConfigError where it can't run there."""
    if run.record.scheduler not in SLURM_SCHEDULERS or cluster.scheduler != "slurm":
        got = f"a run of {run.record.scheduler}, a profile of {cluster.scheduler}"
        raise LaunchError(f"--cluster {name}: {got}; only runs under SLURM take another profile")
    grace = job.fault_tolerance.grace_seconds
    if problems := [*check_fits(job.plan, cluster, "--cluster"), *check_time(grace, cluster, name)]:
        raise ConfigError(problems)
    origin = replace(job.origin, cluster=name)
    return replace(job, origin=origin, site=cluster.site, env=cluster.env)


def _start_here(run: Run, log_offset: int) -> None:
    """Start the node entry point again, and wait until it began an attempt."""
    _await_attempt(run, resume_node(run.layout), log_offset)


def _start_in_slurm(run: Run, log_offset: int) -> None:
    """Submit another job."""
    job = read_job(run.layout.job)
    submit(run.layout, script_of(job, Submission(run_dir=str(run.layout.root), resumed=True)))


STARTERS: dict[str, Callable[[Run, int], None]] = {
    "local": _start_here,
    "titan_local": _start_here,
    "local_cwd": _start_here,
    "slurm": _start_in_slurm,
    "titan_slurm": _start_in_slurm,
}
"""Scheduler -> what starts an ended run again; it is told how long the node log was."""


def _check_unfinished(run: Run, job: Job, changed: Job, state: RunState) -> None:
    """Raises LaunchError where nothing is left to go on from, or no step to train."""
    folder = checkpoint_folder(run.layout, job)
    reached = newest_checkpoint(folder)
    check_kept(run.layout.root, run.record.attempts, folder)
    if not reached and not saves(changed):
        why = "it saves no checkpoints (checkpoint.enable, checkpoint.load_only)"
        raise LaunchError(f"{run.name}: nothing to go on from: {why}; launch a new run")
    if state is RunState.SUCCEEDED:
        reached = max(reached, job.training.steps)
    if changed.training.steps <= reached:
        more = f"train on with --set training.steps=N, N > {reached}"
        raise LaunchError(f"{run.name}: reached step {reached} already; {more}")


@contextmanager
def _alone(run: Run) -> Generator[None]:
    """Hold the run's resume lock. Raises LaunchError where another shell has it."""
    file = os.open(run.layout.root / ".resume.lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise LaunchError(f"{run.name}: is being resumed by another shell right now") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        cure = "its file system has no locks; resume it from a host that mounts it with locks"
        raise LaunchError(f"{run.name}: {cure}: {error.strerror}") from error
    finally:
        os.close(file)


def _began(run: Run) -> bool:
    """Whether an attempt began since the run was read."""
    return len(read_record(run.layout).attempts) > len(run.record.attempts)


def _await_attempt(run: Run, pid: int, log_offset: int) -> None:
    """Wait until the started process began an attempt. Raises LaunchError with what it said."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        gone = process_start(pid) is None  # asked before the record: it may write that, then go
        if _began(run):
            return
        if gone:
            said = " ".join(Tail(run.layout.node_log(0), offset=log_offset).rest())
            raise LaunchError(f"{run.name}: could not be resumed: {said or 'its process is gone'}")
        time.sleep(POLL_SECONDS)
    _signal(pid, signal.SIGKILL)  # or it would begin after all, behind the back of who asked
    late = (
        f"no attempt began within {START_TIMEOUT_SECONDS:.0f} s; see titan-recipes logs {run.word}"
    )
    raise LaunchError(f"{run.name}: {late}")
