"""Runs with a real node entry point, whose trainer is a few lines of Python.

torchrun, which takes seconds to import torch, is stood in for by a module of its name that starts
one rank: what these runs are for does not depend on it. tests/launch/test_launch_node.py runs the
real one.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from past_runs import make_run

from titan_recipes.config.layout import RunLayout
from titan_recipes.launch.record import read_record
from titan_recipes.launch.runs import Run, open_run
from titan_recipes.launch.state import RunState, run_status
from titan_recipes.launch.titan_local import start_node
from titan_recipes.launch.torchrun import orphans

HOLD_STEP = 3
WORKER = f"""
import json, pathlib, sys, time, tomllib
root = pathlib.Path(sys.argv[1]).parent
total = tomllib.loads((root / "job.toml").read_text())["training"]["steps"]
def commit(step):
    path = root / f"checkpoints/step-{{step:08d}}"
    path.mkdir(parents=True, exist_ok=True)
    (path / "manifest.json").write_text("{{}}")
saved = [int(path.name[5:]) for path in (root / "checkpoints").glob("step-*")]
print("training from step", max(saved, default=0), flush=True)
for step in range(max(saved, default=0) + 1, total + 1):
    row = dict(step=step, loss=8.0 / step, grad_norm=1.0, lr=1e-3, tokens_per_second=100.0,
               mfu=None, memory_gib=0.5, time=time.time())
    with (root / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\\n")
    print("@metrics " + json.dumps(row))
    print(f"step {{step}}/{{total}}", flush=True)
    while step == {HOLD_STEP} and (root / "HOLD").exists() and not (root / "STOP").exists():
        time.sleep(0.01)
    while (root / "DEAF").exists():
        time.sleep(0.01)
    if (root / "FAIL").exists():
        raise RuntimeError("boom at step %d" % step)
    if (root / "STOP").exists():
        commit(step)
        (root / "REQUEUE").touch()
        sys.exit(0)
commit(total)
"""
"""Trains `training.steps` steps in no time. Files in the run directory steer it: HOLD waits at step
HOLD_STEP until stopped, DEAF waits there for ever, FAIL raises."""

TORCHRUN = """
import os, subprocess, sys
(node,) = [word.partition("=")[2] for word in sys.argv if word.startswith("--node-rank=")]
rank = [sys.executable, *sys.argv[sys.argv.index("-m"):]]
sys.exit(1 if subprocess.call(rank, env={**os.environ, "RANK": node}) else 0)
"""
"""The one rank of a node, as torchrun starts it: `torch.distributed.run ... -m MODULE ARGS`."""


def stand_in_torchrun(modules: Path) -> None:
    """Put TORCHRUN into a folder, under torchrun's name."""
    torchrun = modules / "torch" / "distributed" / "run.py"
    torchrun.parent.mkdir(parents=True, exist_ok=True)
    for package in (torchrun.parent, torchrun.parent.parent):
        (package / "__init__.py").touch()
    torchrun.write_text(TORCHRUN)


def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait for something that happens by itself."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


def submitted_run(tmp_path: Path, name: str, *flags: str, steps: int = 6) -> Run:
    """A run directory as a launch leaves it before it schedules; flags: files that steer it."""
    modules = tmp_path / "modules"
    stand_in_torchrun(modules)
    (modules / "worker.py").write_text(WORKER)
    overrides = ("plan.gpus_per_node=1", "fault_tolerance.max_restarts=1")
    now = datetime.now(UTC)
    outputs = tmp_path / "outputs"
    run = make_run(outputs, name, steps=steps, reached=0, created=now, overrides=overrides)
    run.layout.node_log(0).unlink()
    for flag in flags:
        (run.layout.root / flag).touch()
    return run


def start_worker(layout: RunLayout, *args: str) -> int:
    """Start a node entry point whose trainer is WORKER, detached; its process id."""
    command = [sys.executable, "-m", "titan_recipes.launch.node", "--run-dir", str(layout.root)]
    modules = layout.root.parent.parent / "modules"
    return start_node(
        layout, [*command, "--trainer-module", "worker", *args], {"PYTHONPATH": str(modules)}
    )


def resume_worker(layout: RunLayout) -> int:
    """As titan_local.resume_node, with WORKER as the trainer."""
    return start_worker(layout, "--resumed")


def wait_for_end(run: Run) -> Run:
    """Wait until nothing more happens by itself; the run as it ended."""
    until(lambda: run_status(run.layout).state.is_final, f"the end of {run.name}")
    return open_run(run.layout.root)


class LiveRuns:
    """The runs that a test started; none is left running after it."""

    def __init__(self, tmp_path: Path) -> None:
        self._tmp_path = tmp_path
        self._runs: list[Run] = []

    def start(self, name: str, *flags: str, steps: int = 6) -> Run:
        """A run under way; with HOLD or DEAF it has reached step HOLD_STEP or 1."""
        run = submitted_run(self._tmp_path, name, *flags, steps=steps)
        self._runs.append(run)
        start_worker(run.layout)
        step = {"HOLD": HOLD_STEP, "DEAF": 1}.get(flags[0] if flags else "", 0)
        log = run.layout.node_log(0)
        shown = f"step {step}/" if step else ""
        until(lambda: log.exists() and shown in log.read_text(), f"step {step} of {name}")
        return open_run(run.layout.root)

    def end(self) -> None:
        for run in self._runs:
            for attempt in read_record(run.layout).attempts[-1:]:
                if run_status(run.layout).state is RunState.RUNNING:
                    os.killpg(attempt.pid, signal.SIGKILL)
            for pid in orphans(run.layout):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def program(code: str, run: Run) -> subprocess.Popen[str]:
    """Python code in a process of its own, its output piped; `run` is open in it."""
    head = "import sys; from pathlib import Path; from titan_recipes.launch.runs import open_run\n"
    head += "run = open_run(Path(sys.argv[1]))\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + code, str(run.layout.root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
