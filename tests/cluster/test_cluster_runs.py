"""train.sbatch on a real SLURM: trains, stops for the time limit, goes on, loses ranks."""

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from training import column, train_here

from tests.cluster.conftest import SlurmCluster
from tests.parity import parity_job
from titan_recipes.config.job import Job, to_toml
from titan_recipes.config.layout import RunLayout
from titan_recipes.config.site import Site
from titan_recipes.launch.record import read_record
from titan_recipes.launch.torchrun import processes_with
from titan_recipes.render import Submission, render_sbatch

SECRET = "hunter2"
HOSTILE = "a b'c\"d$(x)`y`\\z,é #%j"
pytestmark = pytest.mark.slow


def cluster_job(corpus: Path, *overrides: str, nodes: int, **site: object) -> Job:
    """A tiny job of 20 steps, a rank on each node; data parallel."""
    settings = ("checkpoint.enable=true", "checkpoint.interval=5", "plan.gpus_per_node=1")
    job = parity_job(corpus, f"plan.nodes={nodes}", *settings, *overrides, ranks=1, dp=nodes)
    given = {"slurm": {"time": "10:00", "mem": "1000"}, **site}
    return replace(job, site=Site(**given))  # type: ignore[arg-type]


def submit(slurm: SlurmCluster, layout: RunLayout, job: Job) -> str:
    """Hand a job to SLURM; its id."""
    layout.logs.mkdir(parents=True)
    layout.job.write_text(to_toml(job))
    script = layout.root / "train.sbatch"
    script.write_text(render_sbatch(job, Submission(run_dir=str(layout.root))))
    return slurm.run("sbatch", "--parsable", str(script)).stdout.strip()


def wait_for(what: Callable[[], bool], layout: RunLayout, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, _said(layout)
        time.sleep(0.1)


def _said(layout: RunLayout) -> str:
    return "\n".join(path.read_text() for path in sorted(layout.logs.glob("*.log")))


def num_rows(layout: RunLayout) -> int:
    return len(layout.metrics.read_bytes().splitlines()) if layout.metrics.exists() else 0


def is_done(layout: RunLayout) -> bool:
    if not layout.record.exists():
        return False
    attempts = read_record(layout).attempts
    return bool(attempts) and attempts[-1].outcome == "done"


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
    number = submit(slurm, layout, job)
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


def test_run_that_slurm_stops_before_its_time_limit_goes_on_bit_for_bit(
    slurm: SlurmCluster, tmp_path: Path, corpus: Path
) -> None:
    whole, layout = RunLayout(tmp_path / "whole"), RunLayout(tmp_path / "stopped")
    submit(slurm, whole, cluster_job(corpus, nodes=2))
    number = submit(slurm, layout, cluster_job(corpus, nodes=2))
    wait_for(lambda: num_rows(layout) >= 7, layout)
    slurm.run("scancel", "--signal=USR2", "--batch", number)  # what --signal does at its time
    wait_for(lambda: "requeueing job" in _said(layout), layout)
    wait_for(lambda: _state(slurm, number) == "PENDING", layout)
    stopped = read_record(layout).attempts[0]
    assert (stopped.outcome, stopped.exit_code) == ("stopped", 0)
    assert 7 <= stopped.step_to < 20
    slurm.run("scontrol", "update", f"jobid={number}", "starttime=now")
    wait_for(lambda: is_done(layout), layout)
    wait_for(lambda: is_done(whole), whole)
    assert [a.outcome for a in read_record(layout).attempts] == ["stopped", "done"]
    for name in ("loss", "grad_norm", "lr"):
        assert column(layout.root, name) == column(whole.root, name)


def _state(slurm: SlurmCluster, number: str) -> str:
    done = slurm.run("squeue", "--noheader", f"--jobs={number}", "--format=%T", check=False)
    return done.stdout.strip()


def test_rank_that_is_killed_costs_no_place_in_the_queue(
    slurm: SlurmCluster, tmp_path: Path, corpus: Path
) -> None:
    layout = RunLayout(tmp_path / "killed")
    number = submit(slurm, layout, cluster_job(corpus, nodes=2))
    wait_for(lambda: num_rows(layout) >= 7, layout)
    victim = next(
        pid
        for pid in processes_with(str(layout.job), "titan_recipes.trainer", "--attempt")
        if "RANK=1" in Path(f"/proc/{pid}/environ").read_text().split("\0")
    )
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: is_done(layout), layout)
    first, second = read_record(layout).attempts
    assert (first.outcome, first.final) == ("failed", False)
    assert first.cause.startswith("rank 1 was killed by SIGKILL (out of memory?)")
    assert second.step_from == first.step_to >= 5
    assert "Restarts=0" in slurm.run("scontrol", "show", "job", "-o", number).stdout
    assert len(column(layout.root, "loss")) == 20


def test_users_error_ends_the_job_at_once(
    slurm: SlurmCluster, tmp_path: Path, corpus: Path
) -> None:
    layout = RunLayout(tmp_path / "wrong")
    job = cluster_job(corpus, "checkpoint.initial_load_path='/not/there'", nodes=2)
    number = submit(slurm, layout, job)
    wait_for(lambda: _state(slurm, number) in ("", "FAILED"), layout)
    (attempt,) = read_record(layout).attempts
    assert (attempt.outcome, attempt.exit_code, attempt.final) == ("failed", 2, True)
    shown = slurm.run("scontrol", "show", "job", "-o", number).stdout
    assert "JobState=FAILED" in shown
    assert "Restarts=0" in shown
    assert "ExitCode=2:0" in shown
    assert json.loads(layout.exit(1).read_text())["code"] == 2
