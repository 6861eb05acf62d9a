"""What the tests of the node entry point share."""

import os
import signal
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from node_runs import PRELUDE, NodeRun
from past_runs import debug_job

from titan_recipes.config.layout import RunLayout


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """A node entry point that ran in this process leaves it its signal handlers."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., NodeRun]]:
    """A run whose trainer is the given code, which every rank executes."""
    started: list[subprocess.Popen[str]] = []

    def make(code: str, *overrides: str, ranks: int = 1) -> NodeRun:
        modules = tmp_path / "modules"
        modules.mkdir(exist_ok=True)
        (modules / "worker.py").write_text(PRELUDE + textwrap.dedent(code))
        monkeypatch.setenv("PYTHONPATH", str(modules), prepend=os.pathsep)
        job = debug_job(f"plan.gpus_per_node={ranks}", *overrides)
        return NodeRun(RunLayout(tmp_path / "outputs" / "run"), job, started)

    yield make
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
