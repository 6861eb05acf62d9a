"""Killing and starting again what runs on this machine: the node entry point's process."""

import os
import signal
import socket
import time
from contextlib import suppress

from titan_recipes.errors import LaunchError
from titan_recipes.launch.logs import Tail
from titan_recipes.launch.record import is_alive, process_start, read_record
from titan_recipes.launch.run_end import closed
from titan_recipes.launch.run_state import START_TIMEOUT_SECONDS
from titan_recipes.launch.runs import Run, open_run
from titan_recipes.launch.state import run_status
from titan_recipes.launch.stop import KILL_WORD, KILLED
from titan_recipes.launch.titan_local import resume_node
from titan_recipes.launch.torchrun import end_orphans

POLL_SECONDS = 0.1
KILL_SECONDS = 10.0  # for the node entry point to kill its ranks and say so


def kill_here(run: Run) -> Run:
    """End it: signalled twice, the node entry point kills its ranks and writes that down."""
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
    return closed(open_run(run.layout.root), KILLED)


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def start_here(run: Run, log_offset: int) -> None:
    """Start the node entry point again, and wait until it began an attempt."""
    _await_attempt(run, resume_node(run.layout), log_offset)


def began(run: Run) -> bool:
    """Whether an attempt began since the run was read."""
    return len(read_record(run.layout).attempts) > len(run.record.attempts)


def _await_attempt(run: Run, pid: int, log_offset: int) -> None:
    """Wait until the started process began an attempt. Raises LaunchError with what it said."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        gone = process_start(pid) is None  # asked before the record: it may write that, then go
        if began(run):
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
