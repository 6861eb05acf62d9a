"""Finding runs and saying how they stand, from run directories on disk."""

import json
import shlex
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from past_runs import (
    EPOCH,
    attempt,
    commit_checkpoint,
    failed,
    make_run,
    row,
    running,
    stopped,
    write_rows,
)

from titan_recipes.errors import LaunchError
from titan_recipes.launch.record import remember_outputs
from titan_recipes.launch.rows import last_row, read_rows
from titan_recipes.launch.runs import find_run, find_runs
from titan_recipes.launch.status import status_of
from titan_recipes.launch.text import duration, number


def test_find_runs_in_default_and_known_outputs_lists_newest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "elsewhere", "middle", created=EPOCH + timedelta(hours=1))
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "outputs", "old")
    make_run(tmp_path / "outputs", "new", created=EPOCH + timedelta(hours=2))
    runs, broken = find_runs()
    assert [run.name for run in runs] == ["new", "middle", "old"]
    assert broken == []
    assert find_run().name == "new"
    assert [run.name for run in find_runs(tmp_path / "elsewhere")[0]] == ["middle"]


def test_find_runs_when_the_environment_names_a_folder_looks_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "shared", "one")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "empty"))
    assert find_runs()[0] == []
    monkeypatch.setenv("TITAN_RECIPES_OUTPUTS", str(tmp_path / "shared"))
    assert [run.name for run in find_runs()[0]] == ["one"]


def test_find_runs_when_a_record_is_broken_lists_the_others_and_names_it(tmp_path: Path) -> None:
    make_run(tmp_path, "good")
    bad = make_run(tmp_path, "bad").layout.record
    bad.write_text("{")
    runs, broken = find_runs(tmp_path)
    assert [run.name for run in runs] == ["good"]
    assert len(broken) == 1
    assert broken[0].startswith(f"{bad}: not a run record")


def test_find_run_by_path_finds_a_run_in_no_known_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "moved", "one")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "empty"))
    monkeypatch.chdir(run.layout.root)
    assert find_run(str(run.layout.root)).name == "one"
    assert find_run(".").name == "one"
    monkeypatch.chdir(tmp_path / "moved")
    assert find_run("one").layout.root == run.layout.root
    with pytest.raises(LaunchError, match=r"two: not a run directory; it has no run\.json"):
        find_run("./two")


def test_find_run_when_the_name_is_wrong_says_what_was_meant(tmp_path: Path) -> None:
    make_run(tmp_path, "llama3_debug-0301")
    with pytest.raises(LaunchError, match='did you mean "llama3_debug-0301"'):
        find_run("llama3_debug-0310", tmp_path)
    with pytest.raises(LaunchError, match="the newest is llama3_debug-0301"):
        find_run("zzz", tmp_path)


def test_find_run_when_there_is_none_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=f"no runs in {tmp_path}; start one"):
        find_run(None, tmp_path)


def test_find_run_when_two_have_the_name_asks_for_the_path(tmp_path: Path) -> None:
    first, second = (make_run(tmp_path / place, "same") for place in ("a", "b"))
    with pytest.raises(LaunchError, match="2 runs are named 'same'") as caught:
        find_run("same")
    assert str(first.layout.root) in str(caught.value)
    assert find_run(str(second.layout.root)).layout == second.layout


def test_status_of_a_run_that_is_done_has_its_last_row_and_checkpoint(tmp_path: Path) -> None:
    run = make_run(tmp_path, "one", attempt(), reached=20)
    commit_checkpoint(run.layout, 10)
    newest = commit_checkpoint(run.layout, 20)
    (run.layout.root / "checkpoints" / "step-00000030").mkdir()  # not committed
    status = status_of(run)
    assert (status.state, status.step, status.total_steps) == ("SUCCEEDED", 20, 20)
    assert status.loss == row(20)["loss"]
    assert status.tokens_per_second == 3000.0
    assert status.checkpoint == str(newest)
    assert status.eta_seconds is None
    assert status.next == ("titan-recipes report one",)
    assert json.loads(json.dumps(status.as_dict()))["total_steps"] == 20


def test_status_of_a_running_run_has_the_time_left(tmp_path: Path) -> None:
    run = make_run(tmp_path, "one", running(), steps=120, reached=20)
    status = status_of(run)
    assert status.state == "RUNNING"
    # 100 steps of 4 sequences of 512 tokens, at 3,000 tokens/s on each of 2 ranks.
    assert status.eta_seconds == pytest.approx(100 * 4 * 512 / (2 * 3000))
    assert status.next == ("titan-recipes logs -f one", "titan-recipes cancel one")


def test_status_of_a_failed_run_lists_the_failures(tmp_path: Path) -> None:
    causes = [f"rank 1 was killed by SIGKILL, after step {step}" for step in (3, 4)]
    attempts = (
        failed(1, cause=causes[0], final=False),
        failed(2, cause=causes[1], exit_code=3, rank=0),
    )
    status = status_of(make_run(tmp_path, "one", *attempts, reached=4))
    assert (status.state, status.cause, status.attempt) == ("FAILED", causes[1], 2)
    assert status.failures_in_a_row == 2
    assert status.failures[1] == {"attempt": 2, "exit_code": 3, "rank": 0, "cause": causes[1]}
    assert status.next[0] == "titan-recipes logs one"


def test_status_of_a_stopped_run_says_to_resume(tmp_path: Path) -> None:
    status = status_of(make_run(tmp_path, "one", stopped(step_to=0), reached=7))
    assert (status.state, status.cause, status.step) == ("STOPPED", "asked to stop", 7)
    assert status.next == ("titan-recipes resume one", "titan-recipes report one")
    off = make_run(
        tmp_path, "off", stopped(step_to=0), reached=7, overrides=["checkpoint.enable=false"]
    )
    assert status_of(off).next == ("titan-recipes report off",)


def test_commands_when_the_program_is_not_on_the_path_name_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, "one", attempt())
    monkeypatch.setenv("PATH", str(tmp_path))
    (command,) = status_of(run).next
    program, *words = shlex.split(command)
    assert words == ["report", "one"]
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("titan-recipes, version ")


def test_status_when_the_entry_point_was_killed_is_failed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    run = make_run(tmp_path, "one", running(pid=process.pid), reached=5)
    assert status_of(run).state == "RUNNING"
    process.communicate()
    status = status_of(run)
    assert status.state == "FAILED"
    assert status.cause.startswith(f"lost: its process {process.pid} on")


def test_status_without_a_job_that_can_be_read_still_says_what_it_knows(tmp_path: Path) -> None:
    run = make_run(tmp_path, "one", attempt())
    run.layout.job.write_text("[recipe]\nfrom = 'another version'\n")
    status = status_of(run)
    assert (status.state, status.step, status.total_steps) == ("SUCCEEDED", 20, None)


def test_rows_when_a_kill_tore_the_last_line_skip_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_row(path) == {}
    assert read_rows(path) == []
    write_rows(path, [row(step) for step in range(1, 200)])
    with path.open("a") as file:
        file.write('{"step": 200, "los')
    assert last_row(path)["step"] == 199
    assert len(read_rows(path)) == 199


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.4, "0 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3720, "1 h 02 min"),
        (3 * 86400 + 4 * 3600, "3 d 04 h"),
    ],
)
def test_duration_reads_in_its_two_largest_units(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (2.34567, "2.346"), (9999, "9999"), (18432, "18.43K"), (8.03e9, "8.03G")],
)
def test_number_has_four_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_find_runs_through_a_link_to_a_known_folder_lists_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "real", "one")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("TITAN_RECIPES_OUTPUTS", str(tmp_path / "link"))
    assert [run.name for run in find_runs()[0]] == ["one"]


def test_status_when_the_last_step_was_saved_but_not_logged_counts_it(tmp_path: Path) -> None:
    run = make_run(tmp_path, "one", stopped(step_to=11), reached=10)
    commit_checkpoint(run.layout, 11)
    assert status_of(run).step == 11


def test_runs_when_a_folder_cannot_be_read_lists_the_others_and_warns(tmp_path: Path) -> None:
    make_run(tmp_path / "good", "one")
    remember_outputs(tmp_path / ("x" * 300))
    runs, broken = find_runs()
    assert [run.name for run in runs] == ["one"]
    assert len(broken) == 1
    assert "can't be read: File name too long" in broken[0]


def test_commands_when_two_runs_have_the_name_lead_to_the_run_they_are_printed_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "else", "same")
    make_run(tmp_path / "outputs", "same")
    for run in find_runs()[0]:
        (command,) = status_of(find_run(str(run.layout.root))).next[-1:]
        assert find_run(command.split()[-1]).layout == run.layout
    assert find_run("same").layout.root == tmp_path / "outputs" / "same"
