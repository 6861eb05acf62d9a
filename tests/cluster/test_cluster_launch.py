"""`launch --scheduler slurm` on a real SLURM: as users type it, through torchx, side by side."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from training import column

from tests.cluster.conftest import SlurmCluster
from titan_recipes.bundle.find import find_bundle
from titan_recipes.config.job import Job, decode, read_job
from titan_recipes.config.layout import RunLayout
from titan_recipes.config.site import Site
from titan_recipes.errors import LaunchError
from titan_recipes.launch.record import read_record
from titan_recipes.launch.slurm_submit import script_of, submit
from titan_recipes.launch.state import RunState, run_status
from titan_recipes.launch.submit import check_name
from titan_recipes.render import Submission

pytestmark = pytest.mark.slow

PROFILE = """
scheduler = "slurm"
outputs = "{outputs}"
[slurm]
time = "10:00"
mem = "1000"
[hardware]
gpu = "h100"
gpus_per_node = 2
[secrets]
API_KEY = "env"
"""
SMALL = (
    "training.steps=4", "training.seq_len=64", "training.local_batch_size=2",
    "training.global_batch_size=8", "metrics.log_freq=1", "validation.enable=false",
)  # fmt: skip
HOSTILE = (
    "a b", "it's", 'say "x"', "$(touch pwned)", "`touch pwned`", "a,b,c", "a;b&c|d", "é ☃ 漢",
    "#not a comment", "a\\b", "%j %%", "*?[x]", "two\nlines", "-rf",
)  # fmt: skip


@pytest.fixture
def outputs(tmp_path: Path, slurm: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The outputs folder of the profile `ci`."""
    folder = tmp_path / "outputs"
    profiles = tmp_path / "clusters"
    profiles.mkdir()
    text = PROFILE.format(outputs=folder)
    (profiles / "ci.toml").write_text(text)
    (profiles / "bad.toml").write_text(text.replace("[slurm]", '[slurm]\npartition = "bach"'))
    monkeypatch.setenv("TITAN_RECIPES_CLUSTERS", str(profiles))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("API_KEY", "hunter2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return folder


def cli(*words: str, code: int = 0) -> str:
    """What titan-recipes prints, on either stream."""
    done = subprocess.run(
        [sys.executable, "-m", "titan_recipes.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def small(*more: str) -> list[str]:
    return [word for setting in (*SMALL, *more) for word in ("--set", setting)]


def until(what: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("nodes", [2, 4])
def test_run_on_nodes_has_the_losses_of_a_local_run(nodes: int, outputs: Path) -> None:
    local = ("--plan", "cpu2", "--set", "plan.gpu='cpu'", "--set", f"plan.gpus_per_node={nodes}")
    spread = ("--set", f"plan.nodes={nodes}", "--set", "plan.gpus_per_node=1")
    there = ("--cluster", "ci", *local, *small(), *spread)
    said = cli("launch", "llama3_debug", *there, "--name", "a")
    assert "a SUCCEEDED at step 4/4" in said
    cli(
        *("launch", "llama3_debug", "--scheduler", "local", *local, *small()),
        *("--outputs", str(outputs), "--name", "b"),
    )
    for name in ("loss", "grad_norm"):
        assert column(outputs / "a", name) == pytest.approx(column(outputs / "b", name), rel=1e-6)
    record = read_record(RunLayout(outputs / "a"))
    assert (record.scheduler, record.cluster) == ("slurm", "ci")
    assert record.handle == f"titan_slurm://titan-recipes/{job_id(outputs / 'a')}"
    assert sorted(path.name for path in (outputs / "a/logs").glob("node-*.log")) == [
        f"node-{node}.log" for node in range(nodes)
    ]


def job_id(run_dir: Path) -> str:
    return RunLayout(run_dir).slurm_job.read_text().strip()


def state(run_dir: Path) -> RunState:
    return run_status(RunLayout(run_dir)).state


def test_array_trains_each_combination_in_a_run_of_its_own(outputs: Path) -> None:
    words = ("launch", "llama3_debug", "--cluster", "ci", "--plan", "cpu1", *small())
    said = cli(
        *words, "--array", "debug.seed=1,2", "--array", "optimizer.lr=1e-3", "--name", "sweep"
    )
    assert "sweep-1: llama3_debug@" in said
    assert "debug.seed=2 optimizer.lr=1e-3" in said
    runs = [outputs / "sweep-0", outputs / "sweep-1"]
    base = job_id(runs[0]).removesuffix("_0")
    assert job_id(runs[1]) == f"{base}_1"
    cli(*words, "--name", "later", "--after", str(runs[0]), "--after", str(runs[1]), "--detach")
    assert state(outputs / "later") is RunState.PENDING
    until(lambda: all(state(run) is RunState.SUCCEEDED for run in runs))
    assert [read_job(run / "job.toml").debug.seed for run in runs] == [1, 2]
    assert column(runs[0], "loss") != column(runs[1], "loss")
    assert len(column(runs[1], "loss")) == 4
    until(lambda: state(outputs / "later") is RunState.SUCCEEDED)
    assert column(outputs / "later", "loss") != column(runs[0], "loss")  # seed 0


def test_run_after_one_that_is_cancelled_never_starts(outputs: Path, slurm: SlurmCluster) -> None:
    words = ("launch", "llama3_debug", "--cluster", "ci", "--plan", "cpu1", *small(), "--detach")
    cli(*words, "--name", "first", "--set", "training.steps=1000")
    cli(*words, "--name", "second", "--after", str(outputs / "first"))
    shown = slurm.run("scontrol", "show", "job", "-o", job_id(outputs / "second")).stdout
    assert f"Dependency=afterok:{job_id(outputs / 'first')}(unfulfilled)" in shown
    cli("cancel", str(outputs / "first"))
    assert state(outputs / "first") is RunState.STOPPED
    until(lambda: state(outputs / "second") is RunState.STOPPED)
    said = cli(*words, "--name", "third", "--after", str(outputs / "first"), code=2)
    assert "first: it STOPPED; go on with it first: titan-recipes resume" in said
    assert not (outputs / "third").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "plan.gpu='h100'", "--set", "plan.gpus_per_node=4"], "4 > the cluster's 2 per"),
        (["--set", "plan.gpu='a100'"], "but the cluster has h100"),
        (["--set", "fault_tolerance.grace_seconds=600"], "leaves no time to train beside"),
        (["--set", "training.dataset_path='/not/there'"], "no Python sources in /not/there"),
        (["--array", "assets.tokenizer=/nope"], "error: --set: assets.tokenizer: /nope does not"),
        (["--array", "debug.seed="], "not a setting and its values"),
        (["--array", "plan.nodes=1,2"], "plan.nodes 2, not 1"),
        (["--after", "nobody"], "no run 'nobody'"),
        (["--cluster", "bad"], "sbatch: invalid partition specified: bach"),
        (["--scheduler", "local", "--array", "debug.seed=1,2"], "local has no job arrays"),
    ],
)
def test_launch_that_can_not_be_is_told_at_once_and_leaves_nothing(
    words: list[str], told: str, outputs: Path, slurm: SlurmCluster
) -> None:
    before = slurm.run("squeue", "--noheader").stdout
    said = cli(
        "launch", "llama3_debug", "--cluster", "ci", "--plan", "cpu1", *small(), *words, code=2
    )
    assert told in said
    assert "Traceback" not in said
    assert not outputs.exists() or not any(outputs.iterdir())
    assert slurm.run("squeue", "--noheader").stdout == before


def test_launch_without_its_secret_is_refused(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("API_KEY")
    said = cli("launch", "llama3_debug", "--cluster", "ci", "--plan", "cpu1", code=2)
    assert "error: ci: secrets.API_KEY: not in this environment; export API_KEY=..." in said


# --- through torchx -------------------------------------------------------------------------------


def torchx(*words: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("torchx")
    return subprocess.run([program, *words], capture_output=True, text=True, timeout=120)


def test_component_runs_on_titan_slurm_and_on_stock_slurm(outputs: Path, tmp_path: Path) -> None:
    cli(
        *("render", "llama3_debug", "--cluster", "ci", "--plan", "cpu1", *small()),
        *("-o", str(tmp_path / "rendered")),
    )
    component = f"{tmp_path}/rendered/component.py:train"
    where = ("--outputs", str(outputs))
    ours = torchx("run", "-s", "titan_slurm", "-cfg", "time=8:00", component,
                  *where, "--name", "ours", "--env", "EXTRA=a b")  # fmt: skip
    assert ours.returncode == 0, ours.stderr
    number = job_id(outputs / "ours")
    assert f"titan_slurm://torchx/{number}" in ours.stdout
    assert "#SBATCH --time=8:00\n" in (outputs / "ours/train.sbatch").read_text()
    # Stock torchx asks sacct how the job is, which this cluster does not have: it says so and ends.
    stock = torchx("run", "-s", "slurm", "-cfg", f"mem=1000,job_dir={tmp_path}/stock", component,
                   *where, "--name", "stock", "--cpu", "1")  # fmt: skip
    assert "sacct" in stock.stderr
    until(lambda: (outputs / "stock/run.json").exists())
    for name in ("ours", "stock"):
        until(lambda name=name: state(outputs / name) is RunState.SUCCEEDED)
        assert len(column(outputs / name, "loss")) == 4
    assert column(outputs / "ours", "loss") == column(outputs / "stock", "loss")
    assert read_job(outputs / "ours/job.toml").env == {"EXTRA": "a b"}
    status = torchx("status", f"titan_slurm://torchx/{number}")
    assert "State: SUCCEEDED" in status.stdout


def test_torchx_keeps_its_own_schedulers_and_components() -> None:
    schedulers = torchx("runopts").stdout
    for name in ("slurm", "kubernetes", "local_docker", "local_cwd", "titan_local", "titan_slurm"):
        assert f"\n{name}:" in f"\n{schedulers}"
    assert "dist.ddp" in torchx("builtins").stdout


# --- hostile values -------------------------------------------------------------------------------

ECHO = """#!/bin/bash
# Stands in for Python: writes down its words and its environment.
printf '%s\\0' "$@" >"$RECORD/words"
env -0 >"$RECORD/env"
"""


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    program = tmp_path / "echo"
    program.write_text(ECHO)
    program.chmod(0o755)
    return program


def words_of(record: Path) -> dict[str, str]:
    """Option -> value, as the node entry point was given them; waits for the job."""
    until(lambda: (record / "env").exists() and (record / "env").read_text().endswith("\0"))
    words = (record / "words").read_text().split("\0")[:-1]
    return dict(zip(words[3::2], words[4::2], strict=True))


def hostile_job(record: Path, *overrides: str, **env: str) -> Job:
    record.mkdir()
    job = find_bundle("llama3_debug").resolve("cpu1", overrides=overrides).job
    site = Site(slurm={"time": "10:00", "mem": "100"})
    return replace(job, env={**env, "RECORD": str(record)}, site=site)


def hand_in(job: Job, run_dir: Path, echo: Path) -> None:
    run_dir.mkdir(parents=True)
    submit(RunLayout(run_dir), script_of(job, Submission(run_dir=str(run_dir), python=str(echo))))


def test_hostile_env_values_reach_the_nodes_unchanged(
    outputs: Path, tmp_path: Path, echo: Path
) -> None:
    env = {f"VALUE_{number}": value for number, value in enumerate(HOSTILE)}
    env["NCCL_IB_HCA"] = "mlx5_0,mlx5_1"
    hand_in(hostile_job(tmp_path / "record", **env), outputs / "env", echo)
    words_of(tmp_path / "record")
    lines = (tmp_path / "record/env").read_text().split("\0")
    assert [name for name, value in env.items() if f"{name}={value}" not in lines] == []


def test_hostile_paths_and_overrides_reach_the_nodes_unchanged_or_are_refused(
    outputs: Path, tmp_path: Path, echo: Path
) -> None:
    taken: dict[str, Path] = {}
    for number, value in enumerate(HOSTILE):
        record, run_dir = tmp_path / f"record-{number}", outputs / value / "run"
        job = hostile_job(record, f"metrics.save_tb_folder={json.dumps(value)}")
        if set(value) & set('"\\\n'):
            with pytest.raises(LaunchError, match="which sbatch can't take in a path"):
                hand_in(job, run_dir, echo)
            hand_in(job, outputs / f"plain-{number}", echo)
        else:
            hand_in(job, run_dir, echo)
            taken[value] = run_dir
    assert len(taken) == 11
    for number, value in enumerate(HOSTILE):
        words = words_of(tmp_path / f"record-{number}")
        assert words["--run-dir"] == str(taken.get(value, outputs / f"plain-{number}"))
        assert decode(words["--job"]).metrics.save_tb_folder == value
    assert not [*tmp_path.rglob("pwned")]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_run_names_are_refused(name: str, outputs: Path) -> None:
    with pytest.raises(LaunchError, match="not a run name"):
        check_name(name)


def test_resume_under_another_profile_uses_it(outputs: Path, slurm: SlurmCluster) -> None:
    cli(
        *("launch", "llama3_debug", "--cluster", "ci", "--plan", "cpu1", *small(), "--detach"),
        *("--name", "moved", "--set", "training.steps=1000"),
    )
    run = outputs / "moved"
    cli("cancel", str(run))
    assert state(run) is RunState.STOPPED
    said = cli("resume", str(run), "--cluster", "bad", "--detach", code=2)
    assert "sbatch: invalid partition specified: bach" in said
    assert state(run) is RunState.STOPPED
    profile = Path(os.environ["TITAN_RECIPES_CLUSTERS"]) / "ci.toml"
    profile.write_text(
        profile.read_text().replace("[slurm]", '[slurm]\nexclude = "node1"\nhold = true')
    )
    cli("resume", str(run), "--cluster", "ci", "--detach")
    assert state(run) is RunState.PENDING
    shown = slurm.run("scontrol", "show", "job", "-o", job_id(run)).stdout
    assert "ExcNodeList=node1" in shown
    assert "Reason=JobHeldUser" in shown
    cli("cancel", str(run))
    until(lambda: state(run) is RunState.STOPPED)
    assert job_id(run) not in slurm.run("squeue", "--noheader").stdout


def test_ctrl_c_leaves_a_run_in_the_queue_to_itself(outputs: Path, slurm: SlurmCluster) -> None:
    profile = Path(os.environ["TITAN_RECIPES_CLUSTERS"]) / "ci.toml"
    profile.write_text(profile.read_text().replace("[slurm]", "[slurm]\nhold = true"))
    words = ("launch", "llama3_debug", "--cluster", "ci", "--plan", "cpu1", *small())
    command = [sys.executable, "-u", "-m", "titan_recipes.cli", *words, "--name", "held"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launch:
        assert launch.stdout is not None
        shown = iter(launch.stdout.readline, "")
        assert any(line == "waiting: JobHeldUser\n" for line in shown)
        launch.send_signal(signal.SIGINT)
        after = launch.stdout.read()
    assert launch.returncode == 130
    assert "left; held goes on\n" in after
    assert "  titan-recipes cancel" in after
    assert not RunLayout(outputs / "held").stop.exists()
    assert job_id(outputs / "held") in slurm.run("squeue", "--noheader").stdout
    cli("cancel", str(outputs / "held"))
