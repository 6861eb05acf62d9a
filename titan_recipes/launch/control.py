"""Stopping and resuming a run from any shell.

Stopping is asking: the stop file appears, the trainer saves and ends, the node entry point writes
down how. Only `kill` signals anything, and only where the node entry point no longer answers is the
record written in its place. Resuming starts the run again in the same directory; a lock makes sure
that of two shells that resume at once, one does. How a run is killed and started again is its
scheduler's (`CONTROLS`); while its job waits in a queue, cancelling the run is cancelling that.
"""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from titan_recipes.config.cluster import Cluster, check_fits, check_time
from titan_recipes.config.job import Job, read_job, to_toml
from titan_recipes.config.layout import replace_file
from titan_recipes.errors import ConfigError, LaunchError
from titan_recipes.launch.attempts import check_kept, saves
from titan_recipes.launch.changes import change
from titan_recipes.launch.docker_control import kill_container, start_container
from titan_recipes.launch.docker_state import DOCKER_SCHEDULERS
from titan_recipes.launch.kubernetes_control import cancel_pods, kill_pods, start_pods
from titan_recipes.launch.kubernetes_submission import KUBERNETES_SCHEDULERS
from titan_recipes.launch.local_control import began, kill_here, start_here
from titan_recipes.launch.run_end import close
from titan_recipes.launch.run_state import RunState
from titan_recipes.launch.runs import Run, open_run
from titan_recipes.launch.slurm_control import kill_job, leave_queue, start_in_slurm
from titan_recipes.launch.slurm_state import SLURM_SCHEDULERS
from titan_recipes.launch.state import run_status
from titan_recipes.launch.status import checkpoint_folder, saved_step, sees_checkpoints
from titan_recipes.launch.stop import CANCEL_WORD
from titan_recipes.launch.torchrun import end_orphans

POLL_SECONDS = 0.1
ANSWER_SECONDS = 30.0  # beyond grace_seconds, for the node entry point to end and say so


@dataclass(frozen=True, slots=True)
class Controls:
    """What a scheduler does to its runs."""

    kill: Callable[[Run], Run]
    """End a run at once; the run as it ended."""
    start: Callable[[Run, int], None]
    """Start an ended run again; it is told how long the node log was."""
    cancel: Callable[[Run, Callable[[float], None]], Run] | None = None
    """How a run is asked to save and stop, and waited for; None = by the stop file."""


_HERE = Controls(kill_here, start_here)
CONTROLS: dict[str, Controls] = {
    "local": _HERE,
    "titan_local": _HERE,
    "local_cwd": _HERE,
    **dict.fromkeys(SLURM_SCHEDULERS, Controls(kill_job, start_in_slurm)),
    **dict.fromkeys(DOCKER_SCHEDULERS, Controls(kill_container, start_container)),
    **dict.fromkeys(KUBERNETES_SCHEDULERS, Controls(kill_pods, start_pods, cancel_pods)),
}
"""A record's scheduler -> its controls."""
MOVABLE = {"slurm": SLURM_SCHEDULERS, "kubernetes": KUBERNETES_SCHEDULERS}
"""Scheduler of a profile -> the records' schedulers whose runs take it on `resume`."""


def _controls(run: Run, verb: str) -> Controls:
    """Raises LaunchError where nothing of ours started the run."""
    if run.record.scheduler not in CONTROLS:
        raise LaunchError(f"{run.name}: can't {verb} a run of {run.record.scheduler} from here")
    return CONTROLS[run.record.scheduler]


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
    controls = CONTROLS.get(run.record.scheduler)
    if controls and controls.cancel and not run_status(run.layout).state.is_final:
        with _ours(run, "stop"):
            return controls.cancel(run, waiting)
    job = run.job()
    grace = job.fault_tolerance.grace_seconds if job else 0
    began = time.monotonic()
    while not (status := run_status(run.layout)).state.is_final:
        waited = time.monotonic() - began
        if status.state is RunState.PENDING and status.job and status.job.state == "PENDING":
            with _ours(run, "stop"):
                return leave_queue(run, status.job)
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
    is_local = CONTROLS.get(run.record.scheduler, _HERE) is _HERE
    if last and last.host != socket.gethostname() and is_local:
        return close(run, last, f"lost: {last.host} did not answer for {waited:.0f} s")
    kill = f"titan-recipes cancel {run.word} --now"
    raise LaunchError(f"{run.name}: not stopped after {waited:.0f} s; kill it: {kill}")


def kill(run: Run) -> Run:
    """End a run at once, without a checkpoint; the run as it ended. Raises LaunchError."""
    with _ours(run, "stop"):
        return _controls(run, "kill").kill(run)


def resume(
    run: Run, overrides: Sequence[str] = (), cluster: tuple[str, Cluster] | None = None
) -> int:
    """Start a run that has ended again; returns the size its node log had before.

    overrides: `section.key=value` for `CHANGEABLE` keys; cluster: name and profile that takes the
    place of the one that a run under SLURM or on Kubernetes was launched with. Returns once the new
    attempt has begun, or its job is in the scheduler's queue.
    Raises ConfigError or LaunchError where it can't be resumed; nothing is changed then.
    """
    layout = run.layout
    start = _controls(run, "resume").start
    with _ours(run, "resume"), _alone(run):
        state = run_status(layout).state
        run = open_run(layout.root)  # of pods, asking has brought news
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
            if not began(run):
                replace_file(layout.job, text)
            raise
    return offset


def _moved(run: Run, job: Job, name: str, cluster: Cluster) -> Job:
    """The job under another profile. Raises LaunchError or ConfigError where it can't run there."""
    if run.record.scheduler not in MOVABLE.get(cluster.scheduler, ()):
        got = f"a run of {run.record.scheduler}, a profile of {cluster.scheduler}"
        cure = "only runs under SLURM and on Kubernetes take another profile, and one of theirs"
        raise LaunchError(f"--cluster {name}: {got}; {cure}")
    grace = job.fault_tolerance.grace_seconds
    if problems := [*check_fits(job.plan, cluster, "--cluster"), *check_time(grace, cluster, name)]:
        raise ConfigError(problems)
    origin = replace(job.origin, cluster=name)
    return replace(job, origin=origin, site=cluster.site, env=cluster.env)


def _check_unfinished(run: Run, job: Job, changed: Job, state: RunState) -> None:
    """Raises LaunchError where nothing is left to go on from, or no step to train."""
    reached = saved_step(run.layout, run.record.attempts, job)
    if sees_checkpoints(run.layout):
        check_kept(run.layout.root, run.record.attempts, checkpoint_folder(run.layout, job))
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
