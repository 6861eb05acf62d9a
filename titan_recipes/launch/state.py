"""What a run is doing: `run_status` asks whatever runs it.

On this machine that is the node entry point's process.
"""

import socket

from titan_recipes.config.layout import RunLayout
from titan_recipes.launch.docker_state import DOCKER_SCHEDULERS, in_docker
from titan_recipes.launch.kubernetes_state import in_kubernetes
from titan_recipes.launch.kubernetes_submission import KUBERNETES_SCHEDULERS
from titan_recipes.launch.record import RUN_DIR_FLAG, RunRecord, is_alive, read_record
from titan_recipes.launch.run_state import (
    START_TIMEOUT_SECONDS,
    Ask,
    RunState,
    RunStatus,
    age_seconds,
    or_changed,
    recorded,
    running,
)
from titan_recipes.launch.slurm_state import SLURM_SCHEDULERS, in_slurm
from titan_recipes.launch.torchrun import processes_with

SUBMIT_SECONDS = 2.0  # from the record to the process, which the launcher starts right after
ASKS: dict[str, Ask] = {
    **dict.fromkeys(SLURM_SCHEDULERS, in_slurm),
    **dict.fromkeys(DOCKER_SCHEDULERS, in_docker),
    **dict.fromkeys(KUBERNETES_SCHEDULERS, in_kubernetes),
}
"""A record's scheduler -> what finds out how its runs stand; for all others this machine tells."""


def run_status(layout: RunLayout, record: RunRecord | None = None) -> RunStatus:
    """What the run is doing."""
    record = record or read_record(layout)
    return ASKS.get(record.scheduler, _here)(layout, record)


def _here(layout: RunLayout, record: RunRecord) -> RunStatus:
    if not record.attempts:
        return _unstarted(layout, record)
    if ended := recorded(record):
        return ended
    last = record.attempts[-1]
    if is_alive(last):
        return running(layout, record)

    def lost() -> RunStatus:
        cause = f"lost: its process {last.pid} on {last.host} is gone without a word"
        cause += f"; before it: {last.cause}" if last.cause else ""
        return RunStatus(RunState.FAILED, cause)

    return or_changed(layout, record, _here, lost)


def _unstarted(layout: RunLayout, record: RunRecord) -> RunStatus:
    """A run without attempts: soon to start, or never started at all."""
    here = record.host == socket.gethostname()
    is_local = record.scheduler == "local"
    if not is_local or age_seconds(record) < (SUBMIT_SECONDS if here else START_TIMEOUT_SECONDS):
        return RunStatus(RunState.PENDING)
    if here and processes_with(RUN_DIR_FLAG, str(layout.root)):
        return RunStatus(RunState.PENDING)
    cause = "lost: its process began no attempt; see logs/node-0.log"
    return or_changed(layout, record, _here, lambda: RunStatus(RunState.FAILED, cause))
