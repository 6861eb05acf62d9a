"""Runs on the Kubernetes of these tests: launched, waited for, looked at."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from past_runs import debug_job

from titan_recipes.cli import main
from titan_recipes.config.job import Job
from titan_recipes.config.kubernetes import Kubernetes, Volume
from titan_recipes.config.layout import RunLayout
from titan_recipes.config.site import Container, Site
from titan_recipes.launch.record import Attempt, read_record
from titan_recipes.launch.state import RunState, run_status
from titan_recipes.launch.submit import launch

IMAGE = "registry.example/titan-recipes@sha256:" + "0" * 64
NO_RIGHT = 'x is forbidden: User "me" cannot do resource "x"'
"""What the API server says to who may not."""
WAIT_SECONDS = 120.0


@dataclass
class Place:
    """Where the tests' runs are: here, and in the pods."""

    outputs: Path
    volume: Path
    profile: Path

    def job(self, *overrides: str, **own: Any) -> Job:
        """The debug recipe on two pods."""
        plan = ("plan.nodes=2", "plan.gpus_per_node=1", "plan.gpu='cpu'")
        return replace(debug_job(*plan, *overrides), site=self.site(**own))

    def site(self, **own: Any) -> Site:
        volume = Volume(claim="runs", path=str(self.volume))
        own = {"namespace": "ml", "volumes": {"outputs": volume}} | own
        container = Container(image=IMAGE, python=sys.executable)
        return Site(outputs=str(self.volume), container=container, kubernetes=Kubernetes(**own))


def call(*words: object) -> Result:
    """What `titan-recipes` says to these words; a bug keeps its traceback."""
    result = CliRunner().invoke(main, [*map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def start(place: Place, name: str, job: Job) -> RunLayout:
    """Launch a job, as `titan-recipes launch --scheduler kubernetes --detach` does."""
    command = ("test",)
    launched = launch(
        job, outputs=place.outputs, command=command, name=name, scheduler="kubernetes"
    )
    return launched.layout


def wait_for(what: Callable[[], object], layout: RunLayout) -> None:
    """Wait until something is so; fails with all that is known of the run."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not what():
        assert time.monotonic() < deadline, said(layout)
        time.sleep(0.02)


def said(layout: RunLayout) -> str:
    """What is known of a run."""
    logs = [f"--- {path.name}\n{path.read_text()}" for path in sorted(layout.logs.glob("*.log"))]
    return "\n".join([str(run_status(layout)), str(attempts(layout)), *logs])


def attempts(layout: RunLayout) -> tuple[Attempt, ...]:
    return read_record(layout).attempts


def wait_for_end(layout: RunLayout, state: RunState = RunState.SUCCEEDED) -> None:
    """Wait until nothing more happens by itself; fails where the run ended otherwise."""
    wait_for(lambda: run_status(layout).state.is_final, layout)
    assert run_status(layout).state is state, said(layout)
