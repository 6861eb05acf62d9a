"""Killing and starting again what runs in a container on this machine."""

import time

from titan_recipes.config.job import read_job
from titan_recipes.errors import ConfigError, LaunchError
from titan_recipes.launch import docker_engine
from titan_recipes.launch.docker_state import OURS, find_container
from titan_recipes.launch.local_control import began
from titan_recipes.launch.run_end import closed
from titan_recipes.launch.run_state import START_TIMEOUT_SECONDS
from titan_recipes.launch.runs import Run, open_run
from titan_recipes.launch.slurm_submit import missing_secrets
from titan_recipes.launch.stop import KILL_WORD, KILLED

POLL_SECONDS = 0.1
KILL_SECONDS = 10.0  # for the node entry point to kill its ranks and say so


def kill_container(run: Run) -> Run:
    """End it: signalled twice, the node entry point kills its ranks and writes that down."""
    run.layout.stop.write_text(KILL_WORD, encoding="utf-8")
    deadline = time.monotonic() + KILL_SECONDS
    while (container := find_container(run.layout, run.record)) and not container.has_ended:
        patient = time.monotonic() < deadline and container.status == "running"
        docker_engine.signal_container(container.id, "SIGTERM" if patient else "SIGKILL")
        time.sleep(POLL_SECONDS)
    return closed(open_run(run.layout.root), KILLED)


def start_container(run: Run, log_offset: int) -> None:
    """Start it again in a new container, and wait until it began an attempt."""
    from titan_recipes.launch.titan_docker import resume_container

    if run.record.scheduler not in OURS:
        why = f"{run.record.scheduler} alone knows its image and its mounts"
        cure = "give torchx the same command with the same --name again: it goes on from here"
        raise LaunchError(f"{run.name}: {why}; {cure}")
    job = read_job(run.layout.job)
    if problems := [*missing_secrets(job)]:
        raise ConfigError(problems)
    resume_container(run.layout, job)
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        container = find_container(run.layout, run.record)  # before the record: it may write that
        if began(run):
            return
        if container is None or container.has_ended:
            said = f"{container.end}: {docker_engine.last_words(container.id)}" if container else ""
            raise LaunchError(
                f"{run.name}: could not be resumed: its container {said or 'is gone'}"
            )
        time.sleep(POLL_SECONDS)
    if container := find_container(run.layout, run.record):
        docker_engine.remove(container.id)  # or it would begin after all, behind who asked
    late = (
        f"no attempt began within {START_TIMEOUT_SECONDS:.0f} s; see titan-recipes logs {run.word}"
    )
    raise LaunchError(f"{run.name}: {late}")
