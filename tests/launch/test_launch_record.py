"""run.json, the state that follows from it, and the rule of retries."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from past_runs import commit_checkpoint, debug_job

from titan_recipes.config.data_root import data_root
from titan_recipes.config.layout import RunLayout
from titan_recipes.errors import LaunchError
from titan_recipes.launch.attempts import (
    failures_in_a_row,
    is_retried,
    measured,
    newest_checkpoint,
    stops_in_a_row,
)
from titan_recipes.launch.record import (
    Attempt,
    RunRecord,
    git_revision,
    known_outputs,
    new_record,
    now,
    process_start,
    read_record,
    remember_outputs,
    write_record,
)
from titan_recipes.launch.state import RunState, run_status

GONE = 2**22 + 1  # above the highest process id there is


def attempt(number: int = 1, **changed: object) -> Attempt:
    """An attempt that this very process runs."""
    me = os.getpid()
    ours = Attempt(
        number=number,
        started=now(),
        host=socket.gethostname(),
        pid=me,
        pid_start=process_start(me) or 0,
    )
    return replace(ours, **changed)


@pytest.fixture
def layout(tmp_path: Path) -> RunLayout:
    layout = RunLayout(tmp_path / "run")
    layout.root.mkdir()
    return layout


@pytest.fixture
def record() -> RunRecord:
    job = debug_job("training.steps=7")
    return new_record(job, name="run", scheduler="local", handle="titan_local://s/r", command=["x"])


def test_record_when_written_reads_back_equal(layout: RunLayout, record: RunRecord) -> None:
    record = record.with_attempt(attempt(1)).with_attempt(attempt(2))
    record = record.with_attempt(replace(record.attempts[1], outcome="failed", cause="x"))
    write_record(layout, record)
    assert read_record(layout) == record
    assert [(a.number, a.cause) for a in record.attempts] == [(1, ""), (2, "x")]
    assert record.versions["titan-recipes"] == "0.1.0"
    assert record.versions["torch"].startswith("2.")
    assert record.recipe.startswith("llama3_debug@")


@pytest.mark.parametrize("text", ["", "[]", '{"name": "x"}', "null"])
def test_record_when_damaged_says_which_file(layout: RunLayout, text: str) -> None:
    layout.record.write_text(text)
    with pytest.raises(LaunchError, match=r"run\.json: not a run record"):
        read_record(layout)


def test_record_when_missing_says_so(layout: RunLayout) -> None:
    with pytest.raises(LaunchError, match="not a run directory"):
        read_record(layout)


@pytest.mark.parametrize(
    ("attempts", "state", "cause"),
    [
        ([], RunState.PENDING, ""),
        ([attempt()], RunState.RUNNING, ""),
        ([attempt(outcome="failed", cause="x")], RunState.RUNNING, "retrying after: x"),
        ([attempt(outcome="failed", cause="x", final=True)], RunState.FAILED, "x"),
        ([attempt(outcome="failed", cause="x", pid=GONE)], RunState.FAILED, f"lost: .*{GONE}.*x"),
        ([attempt(pid=GONE)], RunState.FAILED, f"lost: its process {GONE} on "),
        ([attempt(pid_start=1)], RunState.FAILED, "lost: "),  # the id went to another process
        ([attempt(host="elsewhere", pid=GONE)], RunState.RUNNING, ""),
        ([attempt(outcome="done", final=True)], RunState.SUCCEEDED, ""),
        ([attempt(outcome="stopped", cause="x", final=True)], RunState.STOPPED, "x"),
    ],
)
def test_status_follows_from_attempts_and_process(
    layout: RunLayout, record: RunRecord, attempts: list[Attempt], state: RunState, cause: str
) -> None:
    record = replace(record, attempts=tuple(attempts))
    write_record(layout, record)
    status = run_status(layout)
    assert status.state is state
    assert re.match(cause or "$", status.cause)


def test_status_when_stop_is_asked_says_so(layout: RunLayout, record: RunRecord) -> None:
    write_record(layout, record.with_attempt(attempt()))
    layout.stop.touch()
    assert run_status(layout).cause == "asked to stop; saving a checkpoint"


def test_status_when_nothing_ever_started_is_failed(
    layout: RunLayout, record: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # no SLURM that could have forgotten the run
    long_ago = (datetime.now(UTC) - timedelta(minutes=2)).isoformat()
    write_record(layout, replace(record, created=long_ago))
    assert run_status(layout).state is RunState.FAILED
    write_record(layout, replace(record, created=long_ago, scheduler="slurm"))
    assert run_status(layout).state is RunState.PENDING


def test_process_start_when_it_is_a_zombie_is_none() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process_start(process.pid) == process_start(process.pid) is not None
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert process_start(process.pid) is None
    process.communicate()
    assert process_start(process.pid) is None


def test_outputs_when_remembered_twice_are_listed_once(tmp_path: Path) -> None:
    assert known_outputs() == []
    for name in ("a", "b", "a"):
        remember_outputs(tmp_path / name)
    assert known_outputs() == [tmp_path / "a", tmp_path / "b"]


def test_git_revision_when_changed_is_dirty(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert git_revision(tmp_path) == ""
    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "x")
    git("tag", "v1")
    assert git_revision(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("2")
    assert git_revision(tmp_path) == git("rev-parse", "HEAD") + "-dirty"


def failed(step_from: int = 0, step_to: int = 0, **changed: object) -> Attempt:
    fields = {"outcome": "failed", "exit_code": 1, "step_from": step_from, "step_to": step_to}
    return attempt(**(fields | changed))


@pytest.mark.parametrize(
    ("attempts", "count"),
    [
        ([], 0),
        ([failed(), failed()], 2),
        ([failed(), failed(0, 10)], 0),
        ([failed(), failed(0, 10), failed(10, 10)], 1),
        ([failed(), failed(), failed(resumed=True)], 1),
        ([failed(), failed(outcome="stopped"), failed()], 2),  # a stop neither counts nor resets
        ([failed(), failed(0, 10, outcome="stopped"), failed(10, 10)], 1),
    ],
)
def test_failures_in_a_row_start_again_with_each_checkpoint(
    attempts: list[Attempt], count: int
) -> None:
    assert failures_in_a_row(attempts) == count


def stopped(step_from: int = 0, step_to: int = 0, **changed: object) -> Attempt:
    return failed(step_from, step_to, outcome="stopped", **changed)


@pytest.mark.parametrize(
    ("attempts", "count"),
    [
        ([], 0),
        ([stopped(), stopped()], 2),
        ([stopped(), stopped(0, 10)], 0),
        ([stopped(0, 10), stopped(10, 10)], 1),
        ([stopped(), failed(), stopped()], 2),  # a failure neither counts nor resets
        ([stopped(), failed(0, 10), stopped(10, 10)], 1),
        ([stopped(), stopped(resumed=True), stopped()], 2),
    ],
)
def test_stops_in_a_row_are_those_without_a_step(attempts: list[Attempt], count: int) -> None:
    assert stops_in_a_row(attempts) == count


def test_retries_end_with_the_fourth_failure_in_a_row_and_never_begin_for_2_and_3() -> None:
    assert [is_retried([failed()] * n, 3) for n in (1, 2, 3, 4)] == [True, True, True, False]
    assert not is_retried([failed(exit_code=2)], 3)
    assert not is_retried([failed(exit_code=3)], 3)
    assert is_retried([failed(exit_code=134)], 3)


def test_newest_checkpoint_counts_only_committed_ones(layout: RunLayout) -> None:
    folder = layout.root / "checkpoints"
    assert newest_checkpoint(folder) == 0
    commit_checkpoint(layout, 9)
    commit_checkpoint(layout, 10)
    (folder / "step-00000011").mkdir()  # no manifest
    torn = folder / "step-00000012.tmp"
    torn.mkdir()
    (torn / "manifest.json").touch()
    assert newest_checkpoint(folder) == 10


def test_measured_is_the_median_rate_without_the_first_and_the_peak_memory() -> None:
    rates, memory = [1.0, 90.0, 100.0, 500.0], [1.5, 2.5, 2.0, None]
    rows = [
        {"tokens_per_second": rate, "memory_gib": gib}
        for rate, gib in zip(rates, memory, strict=True)
    ]
    assert measured(rows) == {"tokens_per_second_per_gpu": 100.0, "peak_memory_gib": 2.5}
    assert measured([]) == {}


def test_outputs_when_the_list_cannot_be_written_warns_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    remember_outputs(tmp_path / "a")
    assert known_outputs() == []
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"Not a directory; find these runs with --outputs {tmp_path}/a")


def test_record_of_a_packaged_recipe_has_no_revision_of_where_the_user_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    (tmp_path / "ignored").mkdir()
    assert git_revision(tmp_path / "ignored") == ""
    expected = git_revision(data_root() / "recipes")
    record = new_record(debug_job(), name="run", scheduler="local", handle="", command=[])
    assert record.git_revision == expected


def test_status_when_the_launched_process_died_before_its_first_attempt_is_failed(
    layout: RunLayout, record: RunRecord
) -> None:
    moment = (datetime.now(UTC) - timedelta(seconds=3)).isoformat()
    write_record(layout, replace(record, created=moment))
    status = run_status(layout)
    assert status.state is RunState.FAILED
    assert "began no attempt" in status.cause
    code = "print(flush=True); input()"
    command = [sys.executable, "-c", code, "--run-dir", str(layout.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert run_status(layout).state is RunState.PENDING
        process.communicate(b"\n")


@pytest.mark.parametrize("created", ["yesterday", "2025-11-21T09:00:00", 7])
def test_record_when_a_time_is_malformed_is_broken(
    layout: RunLayout, record: RunRecord, created: object
) -> None:
    write_record(layout, record)
    data = json.loads(layout.record.read_text())
    layout.record.write_text(json.dumps(data | {"created": created}))
    with pytest.raises(LaunchError, match=r"run\.json: not a run record"):
        read_record(layout)
