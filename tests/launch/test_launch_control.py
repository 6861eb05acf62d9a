"""Stopping and resuming real runs from other shells."""

import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_runs import LiveRuns, program, resume_worker, until, wait_for_end
from past_runs import attempt, commit_checkpoint, make_run, running, stopped

from titan_recipes.config.job import read_job
from titan_recipes.errors import ConfigError, LaunchError
from titan_recipes.launch import control, local_control
from titan_recipes.launch.attempts import newest_checkpoint
from titan_recipes.launch.record import process_start, read_record
from titan_recipes.launch.rows import read_rows
from titan_recipes.launch.runs import Run, open_run
from titan_recipes.launch.state import RunState, run_status
from titan_recipes.launch.torchrun import orphans

RESUME = """
from live_runs import resume_worker
from titan_recipes.errors import LaunchError
from titan_recipes.launch import control, local_control
local_control.resume_node = resume_worker
try:
    control.resume(run)
except LaunchError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveRuns]:
    monkeypatch.setattr(local_control, "resume_node", resume_worker)
    runs = LiveRuns(tmp_path)
    yield runs
    runs.end()


def cancel(run: Run) -> Run:
    return control.cancel(run, waiting=lambda seconds: None)


def test_cancel_then_resume_trains_the_rest_once(live: LiveRuns) -> None:
    run = live.start("held", "HOLD")
    ended = cancel(run)
    assert run_status(ended.layout, ended.record).state is RunState.STOPPED
    assert newest_checkpoint(run.layout.root / "checkpoints") == 3
    assert run.layout.stop.exists()
    assert not run.layout.requeue.exists()  # no scheduler is to go on with what a person stopped

    offset = control.resume(ended)
    assert len(read_record(run.layout).attempts) == 2  # it had begun when resume came back
    ended = wait_for_end(run)
    assert [(a.outcome, a.step_from, a.step_to) for a in ended.record.attempts] == [
        ("stopped", 0, 3),
        ("done", 3, 6),
    ]
    assert ended.record.attempts[1].resumed
    assert [row["step"] for row in read_rows(run.layout.metrics)] == [1, 2, 3, 4, 5, 6]
    assert run.layout.node_log(0).read_bytes()[offset:].startswith(b"training from step 3\n")
    assert not run.layout.stop.exists()
    assert not run.layout.requeue.exists()


def test_cancel_when_the_run_is_deaf_says_to_kill_it(
    live: LiveRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = live.start("deaf", "DEAF")
    monkeypatch.setattr(control, "ANSWER_SECONDS", -299.5)  # of 300 s of grace
    waited: list[float] = []
    with pytest.raises(LaunchError, match=r"deaf: not stopped .* titan-recipes cancel deaf --now"):
        control.cancel(run, waiting=waited.append)
    assert len(waited) >= 3
    assert run_status(run.layout).state is RunState.RUNNING

    ended = control.kill(run)
    last = ended.record.attempts[-1]
    assert (last.outcome, last.cause) == (
        "stopped",
        "killed by cancel --now",
    )
    assert orphans(run.layout) == []


def test_kill_when_the_entry_point_does_not_answer_writes_the_record_itself(
    live: LiveRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = live.start("frozen", "HOLD")
    pid = run.record.attempts[-1].pid
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(local_control, "KILL_SECONDS", 0.3)
    ended = control.kill(run)
    last = ended.record.attempts[-1]
    assert (last.outcome, last.cause, last.final) == ("stopped", "killed by cancel --now", True)
    assert orphans(run.layout) == []
    (run.layout.root / "HOLD").unlink()
    control.resume(ended)
    assert wait_for_end(run).record.attempts[-1].outcome == "done"


def test_kill_of_a_run_on_another_host_is_refused(tmp_path: Path) -> None:
    other = attempt(host="elsewhere", outcome="running", ended="", final=False)
    run = make_run(tmp_path, "far", other)
    with pytest.raises(LaunchError, match="far: runs on elsewhere; type this there"):
        control.kill(run)


def test_cancel_when_another_host_never_answers_closes_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = attempt(host="elsewhere", outcome="running", ended="", final=False, step_to=0)
    run = make_run(tmp_path, "far", other)
    commit_checkpoint(run.layout, 10)
    monkeypatch.setattr(control, "ANSWER_SECONDS", -299.9)
    last = cancel(run).record.attempts[-1]
    assert (last.outcome, last.step_to) == ("stopped", 10)
    assert last.cause.startswith("lost: elsewhere did not answer for")


def test_resume_from_two_shells_at_once_starts_one(live: LiveRuns) -> None:
    run = live.start("held", "HOLD")
    cancel(run)
    shells = [program(RESUME, run) for _ in range(2)]
    said = [shell.communicate(timeout=60)[0] for shell in shells]
    assert sorted(shell.returncode for shell in shells) == [0, 1], said
    refused = next(text for shell, text in zip(shells, said, strict=True) if shell.returncode)
    assert "being resumed by another shell" in refused or "is still RUNNING" in refused
    # Both shells are gone; the run goes on without them.
    ended = wait_for_end(run)
    assert [a.outcome for a in ended.record.attempts] == ["stopped", "done"]


def test_resume_after_the_entry_point_was_killed_goes_on(live: LiveRuns) -> None:
    run = live.start("lost", "HOLD")
    commit_checkpoint(run.layout, 2)
    ranks = orphans(run.layout)
    assert len(ranks) == 2  # torchrun and its one rank
    os.kill(run.record.attempts[-1].pid, signal.SIGKILL)
    until(lambda: run_status(run.layout).state is RunState.FAILED, "it is lost")
    control.resume(open_run(run.layout.root))
    assert [process_start(rank) for rank in ranks] == [None, None]
    (run.layout.root / "HOLD").unlink()
    ended = wait_for_end(run)
    assert [(a.outcome, a.step_from) for a in ended.record.attempts] == [("failed", 0), ("done", 2)]


def test_resume_of_a_done_run_with_more_steps_trains_them(live: LiveRuns) -> None:
    run = wait_for_end(live.start("short", steps=4))
    with pytest.raises(LaunchError, match=r"short: reached step 4 already; .* N > 4"):
        control.resume(run)
    with pytest.raises(LaunchError, match="reached step 4 already"):
        control.resume(run, ["training.steps=3"])
    control.resume(run, ["training.steps=6", "metrics.log_freq=2"])
    job = read_job(run.layout.job)
    assert (job.training.steps, job.metrics.log_freq) == (6, 2)
    assert job.origin.overrides[-2:] == ("training.steps=6", "metrics.log_freq=2")
    assert wait_for_end(run).record.attempts[-1].step_to == 6


def test_resume_without_any_checkpoint_yet_says_that_it_starts_again(live: LiveRuns) -> None:
    run = live.start("deaf", "DEAF")
    ended = control.kill(run)
    (run.layout.root / "DEAF").unlink()
    offset = control.resume(ended)
    wait_for_end(run)
    log = run.layout.node_log(0).read_text()[offset:].splitlines()
    assert log[:2] == ["no checkpoint: starting at step 0", "training from step 0"]


def test_resume_when_the_checkpoints_are_gone_starts_nothing(live: LiveRuns) -> None:
    run = live.start("held", "HOLD")
    ended = cancel(run)
    shutil.move(run.layout.root / "checkpoints", run.layout.root / "elsewhere")
    with pytest.raises(LaunchError, match=r"held: the checkpoint of step 3 is gone; put it back"):
        control.resume(ended)
    assert [row["step"] for row in read_rows(run.layout.metrics)] == [1, 2, 3]
    shutil.move(run.layout.root / "elsewhere", run.layout.root / "checkpoints")
    control.resume(ended)
    assert wait_for_end(run).record.attempts[-1].outcome == "done"


@pytest.mark.parametrize("setting", ["checkpoint.enable=false", "checkpoint.load_only=true"])
def test_resume_of_a_run_that_saves_nothing_is_refused(tmp_path: Path, setting: str) -> None:
    run = make_run(tmp_path, "one", stopped(step_to=0), reached=7, overrides=[setting])
    with pytest.raises(LaunchError, match="one: nothing to go on from: it saves no checkpoints"):
        control.resume(run)


def test_resume_while_it_runs_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "one", running())
    with pytest.raises(LaunchError, match="one: is still RUNNING; stop it first"):
        control.resume(run)


def test_resume_when_the_process_can_not_begin_says_what_it_said(live: LiveRuns) -> None:
    run = live.start("held", "HOLD")
    ended = cancel(run)
    claimed = run.layout.attempt(2) / "node.json"
    claimed.parent.mkdir()
    me = {"host": socket.gethostname(), "pid": os.getpid(), "pid_start": process_start(os.getpid())}
    claimed.write_text(json.dumps(me))
    before = run.layout.job.read_text()
    with pytest.raises(LaunchError, match=r"held: could not be resumed: .*has just begun this"):
        control.resume(ended, ["training.steps=9"])
    assert run.layout.job.read_text() == before
    assert run_status(run.layout).state is RunState.STOPPED


@pytest.mark.parametrize(
    ("override", "got"),
    [
        ("model.dim=512", "goes on with the training it began"),
        ("training.seq_len=8", "goes on with the training it began"),
        ("checkpoint.folder='x'", "would not find its checkpoints"),
        ("checkpoint.enable=false", "would not find its checkpoints"),
        ("checkpoint.intervall=3", 'did you mean "interval"'),
        ("training.steps='many'", "training.steps"),
    ],
)
def test_resume_with_a_setting_that_may_not_change_is_refused_and_changes_nothing(
    tmp_path: Path, override: str, got: str
) -> None:
    run = make_run(tmp_path, "one", stopped(), reached=7)
    run.layout.stop.touch()
    before = run.layout.job.read_text()
    with pytest.raises(ConfigError, match=got):
        control.resume(run, ["training.steps=40", override])
    assert run.layout.job.read_text() == before
    assert run.layout.stop.exists()


def test_resume_of_a_run_of_another_scheduler_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "one", stopped())
    text = run.layout.record.read_text().replace('"scheduler": "local"', '"scheduler": "aws_batch"')
    run.layout.record.write_text(text)
    with pytest.raises(LaunchError, match="can't resume a run of aws_batch from here"):
        control.resume(open_run(run.layout.root))
