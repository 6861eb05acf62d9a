"""How a run in a container stands: its record, and its container on this machine's engine.

The record's process is one inside the container. So the engine is asked, and only where the record
does not say how the run ended; where no engine answers, the run stands as it was last seen.
"""

from titan_recipes.config.layout import RunLayout
from titan_recipes.errors import LaunchError
from titan_recipes.launch import docker_engine
from titan_recipes.launch.docker_engine import Container
from titan_recipes.launch.docker_request import container_name
from titan_recipes.launch.record import RunRecord
from titan_recipes.launch.run_state import (
    RunState,
    RunStatus,
    age_seconds,
    or_changed,
    recorded,
    running,
    unanswered,
)

OURS = ("docker", "titan_docker")
DOCKER_SCHEDULERS = (*OURS, "local_docker")
"""What a record calls Docker: `launch` and torchx do not say the same."""
CREATE_SECONDS = 30.0  # from the record to the container, which the launcher makes right after


def find_container(layout: RunLayout, record: RunRecord) -> Container | None:
    """The run's container; None = there is none (yet, or any more). Raises LaunchError."""
    if record.scheduler in OURS:
        return docker_engine.find_container(name=container_name(layout.root))
    return docker_engine.find_container(app_id=record.handle.rpartition("/")[2])


def in_docker(layout: RunLayout, record: RunRecord) -> RunStatus:
    if ended := recorded(record):
        return ended
    try:
        container = find_container(layout, record)
    except LaunchError as error:
        return unanswered(record, str(error))
    if container is None and not record.attempts and age_seconds(record) < CREATE_SECONDS:
        return RunStatus(RunState.PENDING, "starting")
    if container is None or container.has_ended:
        return or_changed(layout, record, in_docker, lambda: _lost(record, container))
    if container.status == "paused":
        return RunStatus(RunState.RUNNING, f"paused; go on: docker unpause {container.name}")
    return running(layout, record) if record.attempts else RunStatus(RunState.PENDING, "starting")


def _lost(record: RunRecord, container: Container | None) -> RunStatus:
    """Of a run that should have a container at work."""
    last = record.attempts[-1] if record.attempts else None
    cause = "lost: its container is gone"
    if container is not None:
        cause = f"lost: its container {container.name} {container.end}"
        if last is None and not container.error and (said := _last_words(container)):
            cause += f": {said}"
    cause += f"; before it: {last.cause}" if last and last.cause else ""
    return RunStatus(RunState.FAILED, cause)


def _last_words(container: Container) -> str:
    try:
        return docker_engine.last_words(container.id)
    except LaunchError:  # removed since
        return ""
