"""Runs on the SLURM of these tests: launched, held in the middle, waited for, read back.

A run is held by stopping its ranks (SIGSTOP), so that few steps are enough for whatever is done to
it in the middle. What a test waits for is always a condition with a deadline.
"""

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from training import column

from tests.cluster.conftest import SlurmCluster
from tests.parity import parity_job
from titan_recipes.cli import main
from titan_recipes.config.job import Job
from titan_recipes.config.layout import RunLayout
from titan_recipes.config.site import Site
from titan_recipes.launch.record import Attempt, read_record
from titan_recipes.launch.state import RunState, run_status
from titan_recipes.launch.submit import launch
from titan_recipes.launch.torchrun import processes_with

STEPS = 20
SAVED_STEP, HELD_STEP = 5, 7
"""The first checkpoint, and a step between it and the next one."""
WAIT_SECONDS = 600.0
"""For whatever a test waits for; every core may be busy with other tests."""


def cluster_job(corpus: Path, *overrides: str, nodes: int, **site: Any) -> Job:
    """A tiny job of STEPS steps, a rank on each node; data parallel. site: the profile's tables."""
    settings = ("checkpoint.enable=true", f"checkpoint.interval={SAVED_STEP}")
    plan = ("plan.gpus_per_node=1", f"plan.nodes={nodes}")
    job = parity_job(corpus, *plan, *settings, *overrides, ranks=1, dp=nodes)
    options = {"time": "10:00", "mem": "1000", **site.pop("slurm", {})}
    return replace(job, site=Site(slurm=options, **site))


def start(outputs: Path, name: str, job: Job) -> RunLayout:
    """Launch a job, as `titan-recipes launch --scheduler slurm --detach` does."""
    launched = launch(job, outputs=outputs, command=("test",), name=name, scheduler="slurm")
    return launched.layout


def call(*words: object) -> Result:
    """What `titan-recipes` says to these words; a bug keeps its traceback."""
    result = CliRunner().invoke(main, [*map(str, words)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


# --- looking --------------------------------------------------------------------------------------


def wait_for(what: Callable[[], object], layout: RunLayout) -> None:
    """Wait until something is so; fails with all that the run said."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not what():
        assert time.monotonic() < deadline, said(layout)
        time.sleep(0.02)


def said(layout: RunLayout) -> str:
    """What batch script, nodes and ranks wrote."""
    return "\n".join(
        f"--- {path.name}\n{path.read_text()}" for path in sorted(layout.logs.glob("*.log"))
    )


def num_rows(layout: RunLayout) -> int:
    """Steps logged so far."""
    return len(layout.metrics.read_bytes().splitlines()) if layout.metrics.exists() else 0


def attempts(layout: RunLayout) -> tuple[Attempt, ...]:
    return read_record(layout).attempts if layout.record.exists() else ()


def outcomes(layout: RunLayout) -> list[str]:
    """How its attempts ended, oldest first."""
    return [attempt.outcome for attempt in attempts(layout)]


def job_id(layout: RunLayout) -> str:
    """Id of its SLURM job."""
    return layout.slurm_job.read_text().strip()


def shown(slurm: SlurmCluster, job: str) -> dict[str, str]:
    """What `scontrol show job` says: JobState, Restarts, ExitCode, NodeList ..."""
    words = slurm.run("scontrol", "show", "job", "-o", job).stdout.split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def wait_for_job(slurm: SlurmCluster, layout: RunLayout, *states: str) -> None:
    """Wait until SLURM has its job in one of these states."""
    wait_for(lambda: shown(slurm, job_id(layout))["JobState"] in states, layout)


def wait_for_end(layout: RunLayout, state: RunState = RunState.SUCCEEDED) -> None:
    """Wait until nothing more happens by itself; fails where the run ended otherwise."""
    wait_for(lambda: run_status(layout).state.is_final, layout)
    status = run_status(layout)
    assert status.state is state, f"{status.cause}\n{said(layout)}"


def assert_same_losses(layout: RunLayout, undisturbed: RunLayout) -> None:
    """The same numbers, bit for bit, and every step once."""
    for name in ("loss", "grad_norm", "lr"):
        expected = column(undisturbed.root, name)
        assert len(expected) == STEPS
        assert column(layout.root, name) == expected


# --- holding --------------------------------------------------------------------------------------


def ranks(layout: RunLayout) -> dict[int, int]:
    """Its ranks that live, rank -> process id."""
    found: dict[int, int] = {}
    for pid in processes_with(str(layout.job), "titan_recipes.trainer", "--attempt"):
        with suppress(OSError):
            for word in Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0"):
                if word.startswith("RANK="):  # torchrun, which has the same words, has none
                    found[int(word.removeprefix("RANK="))] = pid
    return found


def hold(
    *layouts: RunLayout, num_ranks: int = 2, step: int = HELD_STEP
) -> dict[RunLayout, dict[int, int]]:
    """Stop the ranks of runs in the middle, each when it has logged a step."""
    held: dict[RunLayout, dict[int, int]] = {}
    known = {layout: dict[int, int]() for layout in layouts}
    deadline = time.monotonic() + WAIT_SECONDS
    while waiting := [layout for layout in layouts if layout not in held]:
        for layout in waiting:
            assert time.monotonic() < deadline, said(layout)
            if len(known[layout]) < num_ranks:
                known[layout] = ranks(layout)
            elif num_rows(layout) >= step:
                for pid in known[layout].values():
                    os.kill(pid, signal.SIGSTOP)
                assert num_rows(layout) < STEPS - 1, "came too far to be held"
                held[layout] = known[layout]
        time.sleep(0.01 if all(map(len, known.values())) else 0.1)
    return held


def release(held: dict[int, int]) -> None:
    """Let the ranks go on, those that live."""
    for pid in held.values():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def start_now(slurm: SlurmCluster, layout: RunLayout, *, without: str = "") -> None:
    """A job that was requeued waits two minutes; this one 3 s. without: nodes to keep it from.

    In the second of its end the nodes refuse its new credential with the old one.
    """
    wait_for_job(slurm, layout, "PENDING")
    others = [f"excnodelist={without}"] if without else []
    slurm.run("scontrol", "update", f"jobid={job_id(layout)}", "starttime=now+3", *others)
