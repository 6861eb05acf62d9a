"""Following a run: real node entry points, and a real Ctrl-C."""

import io
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_runs import LiveRuns, program, until, wait_for_end
from past_runs import attempt, failed, make_run, row, stopped
from rich.console import Console

from titan_recipes.errors import LaunchError
from titan_recipes.launch.attempts import newest_checkpoint
from titan_recipes.launch.follow import Screen, describe, follow
from titan_recipes.launch.logs import Tail, log_lines, metrics_of
from titan_recipes.launch.state import RunState, run_status

FOLLOW = "from titan_recipes.launch.follow import follow; sys.exit(follow(run))"


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveRuns]:
    runs = LiveRuns(tmp_path)
    yield runs
    runs.end()


def test_follow_a_run_to_its_end_shows_its_lines_and_where_things_are(live: LiveRuns) -> None:
    run = live.start("short", "HOLD")
    (run.layout.root / "tb").mkdir()
    follower = program(FOLLOW, run)
    (run.layout.root / "HOLD").unlink()
    output, _ = follower.communicate(timeout=60)
    assert follower.returncode == 0
    lines = output.splitlines()
    assert [line for line in lines if line.startswith("step ")] == [
        f"step {step}/6" for step in range(1, 7)
    ]
    assert "@metrics" not in output
    assert "short SUCCEEDED at step 6/6, loss 1.333" in lines
    assert f"  checkpoint   {run.layout.root}/checkpoints/step-00000006" in lines
    assert f"  logs         {run.layout.root}/logs" in lines
    assert f"  TensorBoard  {run.layout.root}/tb" in lines
    assert lines[-2:] == [
        "  titan-recipes report short",
        f"  tensorboard --logdir {run.layout.root}/tb",
    ]


def test_follow_at_ctrl_c_stops_the_run_with_a_checkpoint_and_exits_0(live: LiveRuns) -> None:
    run = live.start("held", "HOLD")
    follower = program(FOLLOW, run)
    assert follower.stdout is not None
    shown = iter(follower.stdout.readline, "")
    before = next(line for line in shown if line == "step 3/6\n")
    follower.send_signal(signal.SIGINT)
    after, _ = follower.communicate(timeout=60)
    assert follower.returncode == 0
    assert before
    assert "stopping with a checkpoint; Ctrl-C again leaves it to itself" in after
    assert "held STOPPED at step 3/6, loss 2.667: asked to stop" in after
    assert after.splitlines()[-2] == "  titan-recipes resume held"
    assert run_status(run.layout).state is RunState.STOPPED
    assert newest_checkpoint(run.layout.root / "checkpoints") == 3


def test_follow_at_a_second_ctrl_c_leaves_the_run_to_itself(live: LiveRuns) -> None:
    run = live.start("deaf", "DEAF")
    follower = program(FOLLOW, run)
    assert follower.stdout is not None
    shown = iter(follower.stdout.readline, "")
    assert any(line == "step 1/6\n" for line in shown)
    follower.send_signal(signal.SIGINT)
    assert any(line.startswith("stopping with a checkpoint") for line in shown)
    follower.send_signal(signal.SIGINT)
    after, _ = follower.communicate(timeout=60)
    assert follower.returncode == 130
    assert "left; deaf goes on stopping with a checkpoint" in after
    assert run_status(run.layout).state is RunState.RUNNING


def test_follow_at_sigterm_stops_the_run_with_a_checkpoint_and_waits_for_it(live: LiveRuns) -> None:
    run = live.start("held", "HOLD")
    follower = program(FOLLOW, run)
    assert follower.stdout is not None
    shown = iter(follower.stdout.readline, "")
    assert any(line == "step 3/6\n" for line in shown)
    follower.terminate()
    after, _ = follower.communicate(timeout=60)
    assert follower.returncode == 0
    assert "stopping with a checkpoint; another SIGTERM leaves it to itself" in after.splitlines()
    assert "held STOPPED at step 3/6, loss 2.667: asked to stop" in after
    assert run_status(run.layout).state is RunState.STOPPED
    assert newest_checkpoint(run.layout.root / "checkpoints") == 3


def test_follow_at_a_second_sigterm_leaves_the_run_to_itself(live: LiveRuns) -> None:
    run = live.start("deaf", "DEAF")
    follower = program(FOLLOW, run)
    assert follower.stdout is not None
    shown = iter(follower.stdout.readline, "")
    assert any(line == "step 1/6\n" for line in shown)
    follower.terminate()
    assert any(line.startswith("stopping with a checkpoint") for line in shown)
    follower.terminate()
    after, _ = follower.communicate(timeout=60)
    assert follower.returncode == 130
    assert "left; deaf goes on stopping with a checkpoint" in after
    assert run_status(run.layout).state is RunState.RUNNING


def test_follow_across_a_retry_to_a_failure_exits_with_its_code(live: LiveRuns) -> None:
    run = live.start("bad", "FAIL")
    follower = program(FOLLOW, run)
    output, _ = follower.communicate(timeout=90)
    assert follower.returncode == 1
    assert output.splitlines().count("step 1/6") == 2  # max_restarts = 1: two attempts
    assert "RuntimeError: boom at step 1" in output
    assert re.search(
        r"^bad FAILED at step 1/6, loss 8: .*RuntimeError: boom at step 1", output, re.M
    )
    assert "  titan-recipes logs bad" in output.splitlines()


@pytest.mark.parametrize(
    ("ended", "code"),
    [
        (attempt(), 0),
        (stopped(), 0),
        (failed(exit_code=2), 2),
        (failed(exit_code=3), 3),
        (failed(exit_code=-9), 1),
    ],
)
def test_follow_a_run_that_has_ended_gives_its_exit_code(
    tmp_path: Path, ended: object, code: int
) -> None:
    run = make_run(tmp_path, "one", ended)
    assert follow(run, console=Console(file=io.StringIO())) == code


def test_follow_after_a_resume_shows_only_what_is_new(tmp_path: Path) -> None:
    run = make_run(tmp_path, "one", stopped(1), attempt(2), reached=2)
    log = run.layout.node_log(0)
    offset = log.stat().st_size
    with log.open("a") as file:
        file.write("[bold]resumed[/bold] :boom:\nlast line without end")
    shown = io.StringIO()
    follow(run, log_offset=offset, console=Console(file=shown, width=20))
    assert shown.getvalue().startswith("[bold]resumed[/bold] :boom:\nlast line without end\n")
    assert "step 1/20" not in shown.getvalue()


def test_screen_on_a_terminal_has_a_progress_line(tmp_path: Path) -> None:
    run = make_run(tmp_path, "one", attempt(), steps=120)
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=80, no_color=True)
    with Screen(run.job(), console) as screen:
        screen.step(row(20))
        screen.line("a line")
    assert "step 20/120" in shown.getvalue()
    assert "loss 5.397  3000 tokens/s  0.75 GiB  ETA 34 s" in shown.getvalue()


def test_describe_when_a_value_is_unknown_shows_a_dash(tmp_path: Path) -> None:
    job = make_run(tmp_path, "one").job()
    assert job is not None
    text = describe(job, {"step": 1, "loss": None})
    assert text == "loss -  - tokens/s  - GiB  ETA -"


def test_tail_gives_whole_lines_and_at_the_end_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = Tail(path)
    assert tail.lines() == []
    path.write_bytes(b"one\ntw")
    assert tail.lines() == ["one"]
    with path.open("ab") as file:
        file.write(b"o\n\xff\nthr")
    assert tail.lines() == ["two", "\ufffd"]
    assert tail.rest() == ["thr"]
    assert tail.rest() == []


def test_metrics_of_a_torn_line_is_empty_and_never_shown() -> None:
    assert metrics_of("hello @metrics {}") is None
    assert metrics_of('@metrics {"step": 1}') == {"step": 1}
    assert metrics_of('@metrics {"ste') == {}


def test_log_lines_hides_lines_for_programs_and_filters(tmp_path: Path) -> None:
    run = make_run(tmp_path, "one", attempt(), reached=3)
    assert list(log_lines(run.layout)) == ["hello", "step 1/20", "step 2/20", "step 3/20"]
    assert list(log_lines(run.layout, grep="hel+o|3/")) == ["hello", "step 3/20"]
    with pytest.raises(LaunchError, match=r"--grep \(: not a regular expression"):
        list(log_lines(run.layout, grep="("))


def test_log_lines_of_a_rank_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    run = make_run(tmp_path, "one", attempt())
    with pytest.raises(LaunchError, match="no rank has started"):
        list(log_lines(run.layout, rank=0))
    for rank in (0, 1, 10):
        run.layout.rank_log(rank).write_text(f"rank {rank} here\n")
    assert list(log_lines(run.layout, rank=10)) == ["rank 10 here"]
    with pytest.raises(LaunchError, match="--rank 7: no log of it; there are ranks 0, 1, 10"):
        list(log_lines(run.layout, rank=7))


def test_log_lines_followed_end_with_the_run(live: LiveRuns) -> None:
    run = live.start("short", "HOLD")
    lines = log_lines(run.layout, running=lambda: not run_status(run.layout).state.is_final)
    seen = [next(lines)]
    until(lambda: run_status(run.layout).state is RunState.RUNNING, "it runs")
    (run.layout.root / "HOLD").unlink()
    seen += lines
    assert seen == ["training from step 0", *(f"step {step}/6" for step in range(1, 7))]
    assert wait_for_end(run).record.attempts[-1].outcome == "done"
