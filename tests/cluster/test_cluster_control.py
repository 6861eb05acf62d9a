"""Stopping, resuming and checking runs on a real SLURM cluster, as people do it."""

import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.cluster_jobs import (
    HELD_STEP,
    assert_same_losses,
    attempts,
    call,
    cluster_job,
    hold,
    job_id,
    num_rows,
    outcomes,
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
from titan_recipes.config.layout import RunLayout
from titan_recipes.config.site import Preflight
from titan_recipes.launch.attempts import newest_checkpoint
from titan_recipes.launch.state import RunState, run_status
from titan_recipes.launch.stop import CANCEL_WORD

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def undisturbed(
    slurm: SlurmCluster,
    tmp_path_factory: pytest.TempPathFactory,
    corpus: Path,
    session_cache: Path,
) -> RunLayout:
    """A run on two nodes that nobody stops; not waited for."""
    outputs = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TITAN_RECIPES_CACHE", str(session_cache))
        patch.setenv("XDG_STATE_HOME", str(outputs / "state"))
        return start(outputs, "undisturbed", cluster_job(corpus, nodes=2))


@contextmanager
def command(*words: str) -> Generator[subprocess.Popen[str]]:
    """`titan-recipes` with these words, at work while what is inside happens; it has to succeed."""
    program = [sys.executable, "-m", "titan_recipes.cli", *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, stdout=pipe, stderr=subprocess.STDOUT, text=True) as process:
        yield process
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
        assert "STOPPED at step" in output


def saved_step(layout: RunLayout) -> int:
    """Step of its newest checkpoint."""
    return newest_checkpoint(layout.root / "checkpoints")


def resume(layout: RunLayout) -> None:
    """`titan-recipes resume`, which submits another job."""
    before = job_id(layout)
    done = call("resume", layout.root, "--detach")
    assert done.exit_code == 0, done.output
    assert job_id(layout) != before


def test_run_that_is_stopped_in_three_ways_goes_on_when_resumed(
    slurm: SlurmCluster, tmp_path: Path, corpus: Path, undisturbed: RunLayout
) -> None:
    layout = start(tmp_path, "stopped", cluster_job(corpus, nodes=2))

    held = hold(layout)
    with command("cancel", str(layout.root)):
        wait_for(layout.stop.exists, layout)
        release(held[layout])
    (last,) = attempts(layout)
    assert (last.outcome, last.exit_code, last.cause) == ("stopped", 0, "asked to stop")
    assert (last.final, last.step_to) == (True, saved_step(layout))
    assert saved_step(layout) >= HELD_STEP
    wait_for_job(slurm, layout, "CANCELLED")
    assert shown(slurm, job_id(layout))["Restarts"] == "0"

    resume(layout)
    held = hold(layout, step=saved_step(layout) + 1)
    saved = saved_step(layout)
    with command("cancel", str(layout.root), "--now"):
        pass
    last = attempts(layout)[-1]
    assert (last.number, last.outcome, last.cause) == (2, "stopped", "killed by cancel --now")
    assert (last.final, saved_step(layout)) == (True, saved)
    wait_for_job(slurm, layout, "CANCELLED")

    resume(layout)
    held = hold(layout, step=num_rows(layout) + 1)
    slurm.run("scancel", job_id(layout))
    wait_for(layout.stop.exists, layout)
    release(held[layout])  # it has KillWait, 5 s here, to save
    wait_for_end(layout, RunState.STOPPED)
    wait_for_job(slurm, layout, "CANCELLED")
    assert shown(slurm, job_id(layout))["Restarts"] == "0"
    assert saved_step(layout) >= saved

    resume(layout)
    wait_for_end(layout)
    wait_for_end(undisturbed)
    assert outcomes(layout)[-1] == "done"
    assert_same_losses(layout, undisturbed)
    wait_for_job(slurm, layout, "COMPLETED")


def test_job_that_waits_is_cancelled_by_whoever_asks(
    slurm: SlurmCluster, tmp_path: Path, corpus: Path
) -> None:
    job = cluster_job(corpus, nodes=2, slurm={"begin": "now+1hour"})
    saved, killed, scancelled = (start(tmp_path, name, job) for name in ("one", "two", "three"))
    assert run_status(saved).state is RunState.PENDING
    for layout, options in ((saved, ()), (killed, ("--now",))):
        done = call("cancel", layout.root, *options)
        assert done.exit_code == 0
        assert "STOPPED at step 0/20: cancelled before it started" in done.output
    slurm.run("scancel", job_id(scancelled))
    for layout in (saved, killed, scancelled):
        wait_for_end(layout, RunState.STOPPED)
        assert shown(slurm, job_id(layout))["JobState"] == "CANCELLED"
        assert attempts(layout) == ()


def test_run_that_is_cancelled_as_it_starts_trains_nothing(
    slurm: SlurmCluster, tmp_path: Path, corpus: Path
) -> None:
    job = cluster_job(corpus, nodes=2, slurm={"begin": "now+1hour"})
    layout = start(tmp_path, "late", job)
    layout.stop.write_text(CANCEL_WORD)  # `cancel` that saw the job run already
    start_now(slurm, layout)
    wait_for_end(layout, RunState.STOPPED)
    wait_for_job(slurm, layout, "CANCELLED")
    assert num_rows(layout) == 0
    assert outcomes(layout) == ["stopped"]
    assert shown(slurm, job_id(layout))["Restarts"] == "0"


# --- preflight ------------------------------------------------------------------------------------


@pytest.fixture
def little_shared_memory(slurm: SlurmCluster) -> Iterator[str]:
    """A node whose /dev/shm has 1 MiB."""
    slurm.inside("node2", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/dev/shm")
    yield "node2"
    slurm.inside("node2", "umount", "/dev/shm")


def test_preflight_names_a_bad_node_or_does_without_it(
    slurm: SlurmCluster,
    tmp_path: Path,
    corpus: Path,
    undisturbed: RunLayout,
    little_shared_memory: str,
) -> None:
    bad = little_shared_memory
    looks = Preflight(enable=True, min_shm_gib=0.1)
    excludes = Preflight(enable=True, min_shm_gib=0.1, exclude_bad_nodes=True)
    fatal = start(tmp_path, "fatal", cluster_job(corpus, nodes=4, preflight=looks))
    away = {"exclude": "node1"}  # the bad node is then the first, where the batch script runs
    spared = start(tmp_path, "spared", cluster_job(corpus, nodes=2, preflight=excludes, slurm=away))
    wait_for_end(fatal, RunState.FAILED)
    (attempt,) = attempts(fatal)
    assert (attempt.outcome, attempt.exit_code, attempt.final) == ("failed", 3, True)
    cause = f"preflight: {bad}: /dev/shm has 0.0 GiB free, 0.1 are wanted; exclude it: "
    assert run_status(fatal).cause == f"{cause}--exclude={bad}"
    wait_for_job(slurm, fatal, "FAILED")
    job = shown(slurm, job_id(fatal))
    assert (job["Restarts"], job["ExitCode"]) == ("0", "3:0")

    start_now(slurm, spared)
    wait_for_end(spared)
    wait_for_end(undisturbed)
    first, second = attempts(spared)
    assert (first.outcome, first.exit_code, first.final) == ("failed", 1, False)
    assert first.cause == f"{cause}--exclude={bad}"
    assert (second.outcome, second.step_from) == ("done", 0)
    job = shown(slurm, job_id(spared))
    assert (job["Restarts"], job["NodeList"]) == ("1", "node[3-4]")
    assert job["ExcNodeList"] == "node1,node2"
    assert "preflight: 2 node(s), 2 ranks: all good" in said(spared)
    assert_same_losses(spared, undisturbed)
