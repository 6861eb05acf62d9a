"""Runs whose node entry points a test starts itself: real torchruns, a trainer of a few lines."""

import subprocess
import sys
from dataclasses import dataclass

from live_runs import until

from titan_recipes.config.job import Job, encode
from titan_recipes.config.layout import RunLayout
from titan_recipes.launch.record import Attempt, read_record
from titan_recipes.launch.state import RunState, run_status

PRELUDE = """
import json, os, pathlib, signal, sys, time
root = pathlib.Path(sys.argv[1]).parent
attempt, rank = int(sys.argv[3]), int(os.environ["RANK"])
stop, requeue = root / "STOP", root / "REQUEUE"
(root / f"pid-{attempt}-{rank}").write_text(str(os.getpid()))
def write_exit(code, cause, traceback="", step=-1):
    exit = dict(code=code, rank=rank, cause=cause, traceback=traceback, step=step)
    (root / f"attempts/{attempt}/exit.json").write_text(json.dumps(exit))
def commit(step):
    path = root / f"checkpoints/step-{step:08d}"
    path.mkdir(parents=True)
    (path / "manifest.json").write_text("{}")
"""


@dataclass
class NodeRun:
    """A run directory and how to start nodes in it."""

    layout: RunLayout
    job: Job
    started: list[subprocess.Popen[str]]

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start a node entry point, its output piped."""
        command = [sys.executable, "-m", "titan_recipes.launch.node"]
        command += ["--run-dir", str(self.layout.root), "--trainer-module", "worker"]
        process = subprocess.Popen(
            [*command, *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def finish(self, *args: str) -> tuple[int, str]:
        """Run a node entry point to its end: (exit code, output)."""
        process = self.start(*(args or ("--job", encode(self.job))))
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def rank_pid(self, attempt: int, rank: int) -> int:
        """The process of a rank, once it is there."""
        path = self.layout.root / f"pid-{attempt}-{rank}"
        until(lambda: path.exists() and path.read_text() != "", f"rank {rank} of attempt {attempt}")
        return int(path.read_text())

    def attempts(self) -> tuple[Attempt, ...]:
        return read_record(self.layout).attempts

    def state(self) -> RunState:
        return run_status(self.layout).state
