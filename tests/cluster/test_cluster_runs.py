"""train.sbatch on a real SLURM: trains as one process does, loses ranks, ends for good."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from training import column, train_here

from tests.cluster.cluster_jobs import (
    HELD_STEP,
    SAVED_STEP,
    STEPS,
    cluster_job,
    num_rows,
    outcomes,
    ranks,
    shown,
    wait_for,
    wait_for_job,
)
from tests.cluster.conftest import SlurmCluster
from tests.parity import parity_job
from titan_recipes.config.job import Job, to_toml
from titan_recipes.config.layout import RunLayout
from titan_recipes.launch.record import read_record
from titan_recipes.launch.slurm_submit import submit
from titan_recipes.launch.torchrun import processes_with
from titan_recipes.render import Submission, render_sbatch

SECRET = "hunter2"
HOSTILE = "a b'c\"d$(x)`y`\\z,é #%j"
pytestmark = pytest.mark.slow


def submit_script(layout: RunLayout, job: Job) -> str:
    """Hand a job's script to SLURM, with no record of it; its id."""
    layout.root.mkdir(parents=True)
    layout.job.write_text(to_toml(job))
    return submit(layout, render_sbatch(job, Submission(run_dir=str(layout.root))))


def is_done(layout: RunLayout) -> bool:
    return outcomes(layout)[-1:] == ["done"]


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, corpus: Path, session_cache: Path
) -> Path:
    """The same training in one process."""
    directory = tmp_path_factory.mktemp("one") / "one"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TITAN_RECIPES_CACHE", str(session_cache))
        train_here(directory, parity_job(corpus))
    return directory


def test_run_on_two_nodes_has_the_losses_of_one_process(
    slurm: SlurmCluster,
    tmp_path: Path,
    corpus: Path,
    undisturbed: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = tmp_path / "key"
    key.write_text(SECRET)
    key.chmod(0o600)
    monkeypatch.setenv("ENV_SECRET", SECRET)
    layout = RunLayout(tmp_path / "a run's $(folder)" / "two")
    record = f"env > {tmp_path}/setup-env"
    job = cluster_job(
        corpus,
        nodes=2,
        setup=(record,),
        secrets={"ENV_SECRET": "env", "FILE_SECRET": f"file:{key}"},
    )
    job = replace(job, env={"NCCL_IB_HCA": "mlx5_0,mlx5_1", "HOSTILE": HOSTILE})
    number = submit_script(layout, job)
    wait_for(lambda: bool(processes_with(str(layout.job), "--attempt")), layout)
    (rank, *_) = processes_with(str(layout.job), "--attempt")
    environment = Path(f"/proc/{rank}/environ").read_text().split("\0")
    assert "NCCL_IB_HCA=mlx5_0,mlx5_1" in environment
    assert f"HOSTILE={HOSTILE}" in environment
    assert f"ENV_SECRET={SECRET}" in environment
    assert f"FILE_SECRET={SECRET}" in environment
    assert SECRET not in slurm.run("scontrol", "show", "job", "-o", number).stdout
    wait_for(lambda: is_done(layout), layout)

    for name in ("loss", "grad_norm"):
        assert column(layout.root, name) == pytest.approx(column(undisturbed, name), rel=1e-6)
    (attempt,) = read_record(layout).attempts
    assert attempt.host == "node1"
    assert read_record(layout).handle == f"titan_slurm://titan-recipes/{number}"
    files = [path for path in layout.root.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []


def test_rank_that_is_killed_costs_no_place_in_the_queue(
    slurm: SlurmCluster, tmp_path: Path, corpus: Path
) -> None:
    layout = RunLayout(tmp_path / "killed")
    number = submit_script(layout, cluster_job(corpus, nodes=2))
    wait_for(lambda: num_rows(layout) >= HELD_STEP, layout)
    os.kill(ranks(layout)[1], signal.SIGKILL)
    wait_for(lambda: is_done(layout), layout)
    first, second = read_record(layout).attempts
    assert (first.outcome, first.final) == ("failed", False)
    assert first.cause.startswith("rank 1 was killed by SIGKILL (out of memory?)")
    assert second.step_from == first.step_to >= SAVED_STEP
    assert shown(slurm, number)["Restarts"] == "0"
    assert len(column(layout.root, "loss")) == STEPS


def test_users_error_ends_the_job_at_once(
    slurm: SlurmCluster, tmp_path: Path, corpus: Path
) -> None:
    layout = RunLayout(tmp_path / "wrong")
    job = cluster_job(corpus, "checkpoint.initial_load_path='/not/there'", nodes=2)
    number = submit_script(layout, job)
    wait_for_job(slurm, layout, "FAILED")
    (attempt,) = read_record(layout).attempts
    assert (attempt.outcome, attempt.exit_code, attempt.final) == ("failed", 2, True)
    ended = shown(slurm, number)
    assert (ended["Restarts"], ended["ExitCode"]) == ("0", "2:0")
    assert json.loads(layout.exit(1).read_text())["code"] == 2
