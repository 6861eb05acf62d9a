"""Faults of a real SLURM cluster, in the middle of a run: it goes on by itself, bit for bit.

Or it ends, with the cause in one line: a job that can't work is not started for ever.
"""

import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest

from tests.cluster.cluster_jobs import (
    HELD_STEP,
    SAVED_STEP,
    STEPS,
    assert_same_losses,
    attempts,
    call,
    cluster_job,
    hold,
    job_id,
    outcomes,
    ranks,
    release,
    said,
    shown,
    start,
    start_now,
    wait_for,
    wait_for_end,
    wait_for_job,
)
from tests.cluster.conftest import SlurmCluster
from titan_recipes.config.job import Job, to_toml
from titan_recipes.config.layout import RunLayout
from titan_recipes.config.slurm_time import limit_seconds
from titan_recipes.launch.record import new_record, write_record
from titan_recipes.launch.rows import last_row
from titan_recipes.launch.slurm_submit import script_of, submit
from titan_recipes.launch.state import RunState, run_status
from titan_recipes.render import Submission

pytestmark = pytest.mark.slow
GRACE_SECONDS = 120
UNPLUGGED_SECONDS = 30


@pytest.fixture(scope="module")
def disturbed(
    slurm: SlurmCluster,
    tmp_path_factory: pytest.TempPathFactory,
    corpus: Path,
    session_cache: Path,
) -> dict[str, RunLayout]:
    """Runs on two nodes, which a fault meets after their first checkpoint, all at the same time.

    "undisturbed" by none; "limited" by its time limit; "crashed" by the end of one of its nodes;
    "unplugged" by 30 s in which one of its nodes had no network.
    """
    outputs = tmp_path_factory.mktemp("disturbed")
    excluded = {
        "undisturbed": "node[2,4]",
        "limited": "node[2,4]",
        "crashed": "node[3-4]",
        "unplugged": "node[1-2]",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TITAN_RECIPES_CACHE", str(session_cache))
        patch.setenv("XDG_STATE_HOME", str(outputs / "state"))
        grace = f"fault_tolerance.grace_seconds={GRACE_SECONDS}"
        runs = {
            name: start(
                outputs, name, cluster_job(corpus, grace, nodes=2, slurm={"exclude": nodes})
            )
            for name, nodes in excluded.items()
        }
        limited, crashed, unplugged = (runs[n] for n in ("limited", "crashed", "unplugged"))
        held = hold(limited, crashed, unplugged)
        slurm.tool("crash", "node2")
        slurm.tool("unplug", "node4")
        plug_at = time.monotonic() + UNPLUGGED_SECONDS
        release(held[crashed])
        release(held[unplugged])
        limit_soon(slurm, limited)
        wait_for(limited.stop.exists, limited)
        slurm.run("scontrol", "update", f"jobid={job_id(limited)}", "timelimit=10")
        release(held[limited])
        start_now(slurm, limited)
        wait_for(lambda: time.monotonic() > plug_at, unplugged)
        slurm.tool("plug", "node4")
        for layout in (crashed, unplugged):
            wait_for(lambda layout=layout: has_stopped(slurm, layout), layout)
            if shown(slurm, job_id(layout))["JobState"] == "PENDING":
                start_now(slurm, layout, without="node[2,4]")
        for layout in runs.values():
            wait_for_end(layout)
        slurm.tool("boot", "node2")
    return runs


def has_stopped(slurm: SlurmCluster, layout: RunLayout) -> bool:
    """Whether a run has ended, or waits in the queue again."""
    return shown(slurm, job_id(layout))["JobState"] not in ("RUNNING", "COMPLETING")


def limit_soon(slurm: SlurmCluster, layout: RunLayout) -> None:
    """Give a running job one or two minutes more: less than SLURM is told to warn it before."""
    job = job_id(layout)
    has_run = limit_seconds(shown(slurm, job)["RunTime"])
    assert has_run is not None
    minutes = math.ceil((has_run + 60) / 60)
    slurm.run("scontrol", "update", f"jobid={job}", f"timelimit={minutes}")


def test_time_limit_in_mid_run_costs_nothing(
    slurm: SlurmCluster, disturbed: dict[str, RunLayout]
) -> None:
    layout = disturbed["limited"]
    first, second = attempts(layout)
    assert (first.outcome, first.exit_code, first.final) == ("stopped", 0, False)
    assert first.cause == "asked to stop"
    assert HELD_STEP <= first.step_to < STEPS  # it saved when it was asked to, not at an interval
    assert (second.outcome, second.step_from) == ("done", first.step_to)
    assert shown(slurm, job_id(layout))["Restarts"] == "1"
    assert "requeueing job" in said(layout)
    assert_same_losses(layout, disturbed["undisturbed"])
    status = call("status", layout.root).output
    assert re.search(r"^state +SUCCEEDED$", status, re.MULTILINE)
    assert re.search(r"^attempt +2$", status, re.MULTILINE)


def test_crashed_node_is_left_for_another(
    slurm: SlurmCluster, disturbed: dict[str, RunLayout]
) -> None:
    layout = disturbed["crashed"]
    job = shown(slurm, job_id(layout))
    assert (job["Restarts"], job["NodeList"]) == ("1", "node[1,3]")
    first, second = attempts(layout)
    assert (first.final, first.step_to) == (False, SAVED_STEP)
    assert (second.outcome, second.step_from) == ("done", SAVED_STEP)
    assert_same_losses(layout, disturbed["undisturbed"])


def test_preempted_run_goes_on_when_there_is_room_and_that_is_no_failure(
    slurm: SlurmCluster, disturbed: dict[str, RunLayout], corpus: Path, tmp_path: Path
) -> None:
    alone = {"exclusive": True, "nodelist": "node[3-4]"}
    layout = start(tmp_path, "preempted", cluster_job(corpus, nodes=2, slurm=alone))
    hold(layout)
    urgent = ("--partition=urgent", "--nodes=2", "--nodelist=node[3-4]", "--exclusive")
    slurm.run("sbatch", *urgent, "--output=/dev/null", "--wrap=true")
    wait_for(lambda: has_stopped(slurm, layout), layout)
    start_now(slurm, layout)
    wait_for_end(layout)
    assert outcomes(layout) == ["stopped", "done"]
    assert attempts(layout)[1].step_from >= SAVED_STEP
    assert_same_losses(layout, disturbed["undisturbed"])
    assert re.search(r"^attempt +2$", call("status", layout.root).output, re.MULTILINE)


def test_node_without_a_network_for_30_seconds_hangs_nothing(
    slurm: SlurmCluster, disturbed: dict[str, RunLayout]
) -> None:
    layout = disturbed["unplugged"]
    assert outcomes(layout)[-1] == "done"
    assert len(outcomes(layout)) == 1 + int(shown(slurm, job_id(layout))["Restarts"]) <= 2
    assert_same_losses(layout, disturbed["undisturbed"])


@contextmanager
def no_controller(slurm: SlurmCluster) -> Generator[None]:
    """slurmctld is killed, and started again afterwards."""
    os.kill(slurm.pid("slurmctld"), signal.SIGKILL)
    try:
        yield
    finally:
        slurm.tool("up", "--nodes", "4", "--gpus", "2")


def test_run_and_its_status_outlive_the_controller(
    slurm: SlurmCluster, tmp_path: Path, corpus: Path, disturbed: dict[str, RunLayout]
) -> None:
    layout = start(tmp_path, "alone", cluster_job(corpus, nodes=2))
    held = hold(layout)
    slurm.run("scancel", "--signal=USR2", "--batch", job_id(layout))  # as before its time limit
    wait_for(layout.stop.exists, layout)
    with no_controller(slurm):
        before = time.monotonic()
        status = json.loads(call("status", layout.root, "--json").stdout)
        assert time.monotonic() - before < 60
        assert (status["state"], status["attempt"], status["job"]) == ("RUNNING", 1, None)
        why = "as last seen: squeue: Unable to contact slurm controller (connect failure)"
        assert status["cause"] == why
        release(held[layout])
        wait_for(lambda: outcomes(layout) == ["stopped"], layout)
    start_now(slurm, layout)  # the batch script asked for it when it could
    wait_for_end(layout)
    assert outcomes(layout) == ["stopped", "done"]
    assert_same_losses(layout, disturbed["undisturbed"])


# --- jobs that can't work -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "num_attempts", "cause"),
    [
        ("torch", 2, "torchrun ended with 1: ImportError: libcudart.so.13: no such file"),
        ("pydantic", 0, "lost: SLURM job {} ended as FAILED: ImportError: libcudart.so.13: "),
    ],
)
def test_import_error_ends_the_job_with_its_words(
    slurm: SlurmCluster,
    tmp_path: Path,
    corpus: Path,
    module: str,
    num_attempts: int,
    cause: str,
) -> None:
    """torch is torchrun's, and retried; without pydantic not even the node entry point starts."""
    broken = tmp_path / "broken" / module
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('libcudart.so.13: no such file')\n")
    setup = (f"export PYTHONPATH={broken.parent}",)
    once = "fault_tolerance.max_restarts=1"
    layout = start(tmp_path, "broken-import", cluster_job(corpus, once, nodes=2, setup=setup))
    wait_for_failure(slurm, layout, exit_code=1)
    assert outcomes(layout) == ["failed"] * num_attempts
    assert run_status(layout).cause.startswith(cause.format(job_id(layout)))


def wait_for_failure(
    slurm: SlurmCluster, layout: RunLayout, *, exit_code: int, restarts: int = 0
) -> None:
    """Wait until a run has failed, and nobody starts its job again."""
    wait_for_end(layout, RunState.FAILED)
    wait_for_job(slurm, layout, "FAILED")
    job = shown(slurm, job_id(layout))
    assert (job["ExitCode"], job["Restarts"]) == (f"{exit_code}:0", str(restarts))
    assert "\n" not in run_status(layout).cause


def test_rank_that_is_killed_in_each_attempt_ends_the_job(
    slurm: SlurmCluster, tmp_path: Path, corpus: Path
) -> None:
    settings = ("fault_tolerance.max_restarts=1", "checkpoint.interval=100")
    layout = start(tmp_path, "killed", cluster_job(corpus, *settings, nodes=2))
    for number in (1, 2):
        wait_for(lambda number=number: len(attempts(layout)) == number, layout)
        began = datetime.fromisoformat(attempts(layout)[-1].started).timestamp()
        wait_for(lambda began=began: last_row(layout.metrics).get("time", 0.0) > began, layout)
        os.kill(ranks(layout)[1], signal.SIGKILL)
    wait_for_failure(slurm, layout, exit_code=1)
    assert [(a.outcome, a.final) for a in attempts(layout)] == [("failed", False), ("failed", True)]
    why = "rank 1 was killed by SIGKILL (out of memory?)"
    assert run_status(layout).cause.startswith(why)
    assert f"state       FAILED: {why}" in call("status", layout.root).output


def start_with(python: Path, outputs: Path, job: Job) -> RunLayout:
    """Launch a job whose nodes use another Python than this one."""
    layout = RunLayout(outputs / "run")
    layout.root.mkdir()
    layout.job.write_text(to_toml(job))
    record = new_record(job, name="run", scheduler="slurm", handle="", command=("test",))
    write_record(layout, record)
    submit(layout, script_of(job, Submission(run_dir=str(layout.root), python=str(python))))
    return layout


def test_missing_python_ends_the_job(slurm: SlurmCluster, tmp_path: Path, corpus: Path) -> None:
    python = tmp_path / "venv/bin/python"
    layout = start_with(python, tmp_path, cluster_job(corpus, nodes=2))
    wait_for_failure(slurm, layout, exit_code=2)
    assert attempts(layout) == ()
    assert f"{python}: No such file or directory" in run_status(layout).cause


def test_python_that_is_gone_after_a_requeue_ends_the_job(
    slurm: SlurmCluster, tmp_path: Path, corpus: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    layout = start_with(python, tmp_path, cluster_job(corpus, nodes=2))
    held = hold(layout)
    slurm.run("scancel", "--signal=USR2", "--batch", job_id(layout))
    wait_for(layout.stop.exists, layout)
    release(held[layout])
    wait_for_job(slurm, layout, "PENDING")
    assert layout.requeue.exists()
    python.unlink()
    start_now(slurm, layout)
    wait_for_failure(slurm, layout, exit_code=2, restarts=1)
    assert outcomes(layout) == ["stopped"]
    assert f"{python}: No such file or directory" in run_status(layout).cause
