"""The commands about runs, as typed: what they print, their JSON keys, their exit codes."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from live_runs import LiveRuns, resume_worker, wait_for_end
from past_runs import EPOCH, attempt, commit_checkpoint, failed, make_run, running, stopped

from titan_recipes.cli import main
from titan_recipes.launch import local_control
from titan_recipes.launch.state import RunState, run_status

KEYS = [
    "run",
    "path",
    "recipe",
    "plan",
    "scheduler",
    "state",
    "cause",
    "job",
    "attempt",
    "failures_in_a_row",
    "max_restarts",
    "step",
    "total_steps",
    "loss",
    "tokens_per_second",
    "memory_gib",
    "logged_step",
    "eta_seconds",
    "checkpoint",
    "created",
    "started",
    "ended",
    "age_seconds",
    "failures",
    "next",
]


def call(*args: str) -> Result:
    """The command's result; a bug keeps its traceback."""
    result = CliRunner().invoke(main, args)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveRuns]:
    monkeypatch.setattr(local_control, "resume_node", resume_worker)
    runs = LiveRuns(tmp_path)
    yield runs
    runs.end()


def test_cli_runs_prints_a_row_for_each_run(tmp_path: Path) -> None:
    make_run(tmp_path, "old", attempt())
    make_run(tmp_path, "new", running(), steps=50, created=EPOCH + timedelta(hours=1))
    result = call("runs")
    header, *rows = result.output.splitlines()
    assert header.split() == (
        [
            "RUN",
            "RECIPE",
            "PLAN",
            "SCHEDULER",
            "STATE",
            "STEP",
            "LOSS",
            "TOKENS/S",
            "STARTED",
            "AGE",
        ]
    )
    assert [row.split()[:8] for row in rows] == [
        ["new", "llama3_debug@0.1.0", "cpu2", "local", "RUNNING", "20/50", "5.397", "3000"],
        ["old", "llama3_debug@0.1.0", "cpu2", "local", "SUCCEEDED", "20/20", "5.397", "3000"],
    ]


def test_cli_runs_as_json_has_stable_keys(tmp_path: Path) -> None:
    make_run(tmp_path, "one", attempt())
    (only,) = json.loads(call("runs", "--json").output)
    assert list(only) == KEYS
    assert (only["run"], only["state"], only["step"]) == ("one", "SUCCEEDED", 20)
    (tmp_path / "empty").mkdir()
    assert json.loads(call("runs", "--json", "--outputs", str(tmp_path / "empty")).output) == []


@pytest.mark.parametrize("command", ["runs", "status"])
def test_cli_when_the_outputs_folder_is_missing_names_it(tmp_path: Path, command: str) -> None:
    make_run(tmp_path, "one", attempt())
    result = call(command, "--outputs", "/nope")
    assert (result.exit_code, result.stderr) == (2, "error: --outputs /nope: no such folder\n")


def test_cli_runs_names_a_broken_record_on_stderr(tmp_path: Path) -> None:
    run = make_run(tmp_path, "one", attempt())
    run.layout.record.write_text("[]")
    result = call("runs", "--json")
    assert json.loads(result.stdout) == []
    assert result.stderr.startswith(f"warning: {run.layout.record}: not a run record")


def test_cli_status_of_a_failed_run_has_the_cause_in_one_line_and_what_to_type(
    tmp_path: Path,
) -> None:
    cause = "rank 1 was killed by SIGKILL (out of memory?), after step 7"
    run = make_run(tmp_path, "bad", failed(1, final=False), failed(2, cause=cause), reached=7)
    path = commit_checkpoint(run.layout, 5)
    lines = call("status").output.splitlines()
    assert f"state       FAILED: {cause}" in lines
    assert "attempt     2; 2 failed in a row without a new checkpoint, 3 are retried" in lines
    assert "step        7/20" in lines
    assert f"checkpoint  {path}" in lines
    assert f"failure     attempt 2: {cause} (exit 1)" in lines
    assert lines[-3:] == [
        "next        titan-recipes logs bad",
        "next        titan-recipes resume bad",
        "next        titan-recipes report bad",
    ]
    assert list(json.loads(call("status", "bad", "--json").output)) == KEYS


@pytest.mark.parametrize("code", [2, 3])
def test_cli_status_of_a_failure_that_is_never_retried_says_so_and_offers_no_resume(
    tmp_path: Path, code: int
) -> None:
    make_run(tmp_path, "bad", failed(exit_code=code), reached=0)
    lines = call("status").output.splitlines()
    said = f"1 failed in a row without a new checkpoint, exit {code} is never retried"
    assert f"attempt     1; {said}" in lines
    assert lines[-2:] == [
        "next        titan-recipes logs bad",
        "next        titan-recipes report bad",
    ]


def test_cli_status_when_the_run_came_further_than_its_last_row_says_which_step_the_loss_is_of(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path, "one", stopped(step_to=7), reached=5)
    commit_checkpoint(run.layout, 7)
    lines = call("status").output.splitlines()
    assert "step        7/20" in lines
    assert "loss        6.942 at step 5" in lines


def test_cli_resume_when_the_checkpoints_are_gone_exits_2_and_keeps_the_rows(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path, "one", stopped(step_to=7), reached=7)
    before = run.layout.metrics.read_text()
    result = call("resume")
    folder = run.layout.root / "checkpoints"
    assert (result.exit_code, result.stderr) == (
        2,
        f"error: one: the checkpoint of step 7 is gone; put it back into {folder}, "
        "or launch a new run\n",
    )
    assert run.layout.metrics.read_text() == before
    assert "resume" not in call("status").output


def test_cli_checkpoint_verbs_take_a_run_s_name(tmp_path: Path) -> None:
    make_run(tmp_path, "one", attempt())
    command = [sys.executable, "-m", "titan_recipes.cli", "checkpoint", "list"]
    done = subprocess.run([*command, "one"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        f"error: {tmp_path / 'one'}: no checkpoints here\n",
    )
    done = subprocess.run([*command, "onne"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        f"error: no run 'onne' in {tmp_path}; did you mean \"one\"?\n",
    )


def test_cli_launch_blames_each_missing_input_on_what_set_it_and_makes_nothing(
    tmp_path: Path,
) -> None:
    sets = ["--set", "training.dataset=text", "--set", "training.dataset_path=/no/text.txt"]
    sets += ["--set", "assets.tokenizer=/no/tokenizer", "--set", "plan.gpu=cpu"]
    outputs = tmp_path / "outputs"
    result = call("launch", "llama3_debug", "--outputs", str(outputs), *sets)
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "error: --set: assets.tokenizer: /no/tokenizer does not exist; "
        "set it to a tokenizer file or its directory",
        "error: --set: training.dataset_path: /no/text.txt does not exist; "
        "give a file, a directory or a glob of jsonl, parquet or txt",
    ]
    assert not outputs.exists()
    assert call("launch", "llama3_debug", "--dry-run", *sets).exit_code == 0


def test_cli_launch_with_an_empty_name_is_refused(tmp_path: Path) -> None:
    for flags in ([], ["--dry-run"]):
        result = call("launch", "llama3_debug", "--name", "", *flags)
        assert result.exit_code == 2
        assert result.stderr.startswith("error: --name '': not a run name; use lower-case letters")


def test_cli_status_of_a_run_that_is_not_there_exits_2(tmp_path: Path) -> None:
    make_run(tmp_path, "llama", attempt())
    result = call("status", "lama")
    assert result.exit_code == 2
    assert result.stderr == f"error: no run 'lama' in {tmp_path}; did you mean \"llama\"?\n"


def test_cli_logs_prints_lines_for_people(tmp_path: Path) -> None:
    run = make_run(tmp_path, "one", attempt(), reached=2)
    run.layout.rank_log(1).write_text("from rank 1\n")
    assert call("logs").output == "hello\nstep 1/20\nstep 2/20\n"
    assert call("logs", "one", "-f", "--grep", "step").output == "step 1/20\nstep 2/20\n"
    assert call("logs", "--rank", "1").output == "from rank 1\n"
    assert call("logs", "--rank", "2").exit_code == 2


def test_cli_logs_followed_at_ctrl_c_leaves_the_run_alone(live: LiveRuns) -> None:
    run = live.start("held", "HOLD")
    command = [sys.executable, "-m", "titan_recipes.cli", "logs", "-f", str(run.layout.root)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as logs:
        assert logs.stdout is not None
        shown = iter(logs.stdout.readline, "")
        assert any(line == "step 3/6\n" for line in shown)
        logs.send_signal(signal.SIGINT)
        _, errors = logs.communicate(timeout=60)
    assert logs.returncode == 1
    assert "Traceback" not in errors
    assert not run.layout.stop.exists()
    assert run_status(run.layout).state is RunState.RUNNING


def test_cli_cancel_then_resume_follows_to_the_end(live: LiveRuns) -> None:
    run = live.start("held", "HOLD")
    result = call("cancel", "held")
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "asked held to save a checkpoint and stop; --now kills it instead",
        "held STOPPED at step 3/6, loss 2.667: asked to stop",
        "  titan-recipes resume held",
        "  titan-recipes report held",
    ]
    assert call("cancel", "held").output == (
        "held is not running: it STOPPED at step 3/6, loss 2.667: asked to stop\n"
    )
    result = call("resume", "--set", "training.steps=8")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[:2] == ["training from step 3", "step 4/8"]  # nothing of the first attempt
    assert "held SUCCEEDED at step 8/8, loss 1" in lines
    assert run_status(run.layout).state is RunState.SUCCEEDED


def test_cli_resume_detached_returns_while_it_runs(live: LiveRuns) -> None:
    run = live.start("held", "HOLD")
    call("cancel")
    (run.layout.root / "DEAF").touch()  # it hangs in step 4
    result = call("resume", "held", "--detach")
    assert result.output.splitlines() == [
        "held is RUNNING again",
        "  titan-recipes logs -f held",
        "  titan-recipes cancel held",
    ]
    assert run_status(run.layout).state is RunState.RUNNING
    assert call("resume", "held").stderr == (
        "error: held: is still RUNNING; stop it first: titan-recipes cancel held\n"
    )
    result = call("cancel", "--now")
    assert result.exit_code == 0
    assert result.output.startswith("held STOPPED at step ")
    assert wait_for_end(run).record.attempts[-1].outcome == "stopped"


def test_cli_resume_with_a_setting_that_may_not_change_exits_2(tmp_path: Path) -> None:
    make_run(tmp_path, "one", stopped(), reached=7)
    result = call("resume", "--set", "optimizer.lr=1.0", "--set", "model.dim=3")
    assert result.exit_code == 2
    keys = [line.split(":")[2].strip() for line in result.stderr.splitlines()]
    assert keys == ["optimizer.lr", "model.dim"]


def test_cli_report_writes_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "outputs", "one", attempt())
    assert call("report").output == "outputs/one/report.html\n"
    assert call("report", "one", "-o", "page.html").output == "page.html\n"
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert call("report", "-o", "no/page.html").exit_code == 2


def test_cli_status_imports_neither_torch_nor_torchx(tmp_path: Path) -> None:
    run = make_run(tmp_path, "one", attempt())
    code = "import sys; from titan_recipes.cli import main\n"
    code += f"main(['status', {str(run.layout.root)!r}], standalone_mode=False)\n"
    code += "print([m for m in ('torch', 'torchx', 'numpy', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
