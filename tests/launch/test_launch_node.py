"""The node entry point with real torchruns: how ranks end, how a run stops, what is retried."""

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from live_runs import until
from node_runs import NodeRun
from past_runs import debug_job, failed

from titan_recipes.config.job import encode, read_job, to_toml
from titan_recipes.config.layout import RankExit, RunLayout
from titan_recipes.errors import LaunchError
from titan_recipes.launch.attempts import failures_in_a_row
from titan_recipes.launch.changes import adopt_job, change
from titan_recipes.launch.claim import claim
from titan_recipes.launch.node import AGAIN, main
from titan_recipes.launch.record import (
    known_outputs,
    new_record,
    now,
    process_start,
    write_record,
)
from titan_recipes.launch.state import RunState, run_status
from titan_recipes.launch.torchrun import explain, rendezvous


def test_node_when_the_ranks_succeed_exits_0_and_records_the_run(
    make_run: Callable[..., NodeRun],
) -> None:
    run = make_run(
        """
        print("a line for people", os.environ["OMP_NUM_THREADS"], flush=True)
        print("torch's own noise", file=sys.stderr)
        commit(7)
        """
    )
    code, output = run.finish()
    assert (code, output) == (0, "a line for people 1\n")
    assert run.layout.node_log(0).read_text() == output
    assert "torch's own noise" in (run.layout.logs / "torchrun.log").read_text()
    assert read_job(run.layout.job) == run.job
    (attempt,) = run.attempts()
    assert (attempt.outcome, attempt.exit_code, attempt.step_from, attempt.step_to) == (
        ("done", 0, 0, 7)
    )
    assert run.state() is RunState.SUCCEEDED
    assert known_outputs() == [run.layout.root.parent]


def test_node_when_a_rank_ends_with_3_exits_with_it_and_does_not_retry(
    make_run: Callable[..., NodeRun],
) -> None:
    run = make_run(
        """
        if rank == 1:
            write_exit(3, "shard 7 is torn", "Traceback: the words of the rank", 11)
            sys.exit(3)
        time.sleep(600)
        """,
        ranks=2,
    )
    exit_code, output = run.finish()
    assert exit_code == 3
    assert output == "error: shard 7 is torn\n"
    (attempt,) = run.attempts()
    assert (attempt.exit_code, attempt.rank, attempt.final) == (3, 1, True)
    status = run_status(run.layout)
    assert (status.state, status.cause) == (RunState.FAILED, "shard 7 is torn")
    # A scheduler that restarts it all the same gets nowhere.
    code, output = run.finish()
    assert (code, output.partition(";")[0]) == (3, "not retried: shard 7 is torn")
    assert len(run.attempts()) == 1


def test_node_when_a_rank_is_killed_starts_again_and_names_the_rank(
    make_run: Callable[..., NodeRun],
) -> None:
    run = make_run(
        """
        if attempt == 1:
            if rank == 1:
                commit(10)
                (root / "metrics.jsonl").write_text('{"step": 12}\\n')
                os.kill(os.getpid(), signal.SIGKILL)
            write_exit(1, "connection closed by peer")  # what the survivor believes
            time.sleep(600)
        """,
        ranks=2,
    )
    code, output = run.finish()
    cause = "rank 1 was killed by SIGKILL (out of memory?), after step 12"
    assert code == 0
    assert output == f"attempt 1 failed: {cause}\nstarting again from step 10\n"
    first, second = run.attempts()
    assert (first.outcome, first.cause, first.rank, first.final) == ("failed", cause, 1, False)
    assert (first.step_to, second.step_from, second.outcome) == (10, 10, "done")
    assert run.state() is RunState.SUCCEEDED


def test_node_when_failures_go_on_without_a_checkpoint_gives_up_and_stays_given_up(
    make_run: Callable[..., NodeRun],
) -> None:
    run = make_run("os.kill(os.getpid(), signal.SIGKILL)", "fault_tolerance.max_restarts=1")
    code, output = run.finish()
    cause = "rank 0 was killed by SIGKILL (out of memory?)"
    assert code == 1
    assert output.splitlines()[-1] == ("giving up: 2 failures in a row without a new checkpoint")
    assert [(a.outcome, a.final) for a in run.attempts()] == [("failed", False), ("failed", True)]
    status = run_status(run.layout)
    assert (status.state, status.cause) == (RunState.FAILED, cause)
    # A scheduler that restarts it all the same gets nowhere.
    assert run.finish() == (1, f"given up: {cause}; go on with: titan-recipes resume\n")
    assert len(run.attempts()) == 2


def test_node_when_a_rank_cannot_start_shows_its_traceback(
    make_run: Callable[..., NodeRun],
) -> None:
    run = make_run("import no_such_module", "fault_tolerance.max_restarts=0")
    code, output = run.finish()
    cause = "rank 0 ended with 1: ModuleNotFoundError: No module named 'no_such_module'"
    assert code == 1
    assert output.startswith(f"attempt 1 failed: {cause}\nTraceback (most recent call last):\n")
    assert "torch/distributed" not in output
    assert run.attempts()[0].cause == cause


def test_node_when_asked_by_ctrl_c_stops_without_signalling_the_ranks(
    make_run: Callable[..., NodeRun],
) -> None:
    run = make_run(
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: (root / "signalled").touch())
        while not stop.exists():
            time.sleep(0.02)
        requeue.touch()
        """
    )
    process = run.start("--job", encode(run.job))
    run.rank_pid(1, 0)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, "")
    assert not (run.layout.root / "signalled").exists()
    (attempt,) = run.attempts()
    assert (attempt.outcome, attempt.exit_code, attempt.cause) == ("stopped", 0, "asked to stop")
    assert run.state() is RunState.STOPPED


def test_node_when_resumed_after_a_stop_trains_on(make_run: Callable[..., NodeRun]) -> None:
    run = make_run("sys.exit(4 if stop.exists() or requeue.exists() else 0)")
    run.layout.root.mkdir(parents=True)
    run.layout.stop.touch()
    assert run.finish() == (0, "attempt 1 stopped: asked to stop before it started\n")
    assert run.layout.requeue.exists()
    assert run.state() is RunState.STOPPED
    assert run.finish("--resumed") == (0, "no checkpoint: starting at step 0\n")
    assert [a.outcome for a in run.attempts()] == ["stopped", "done"]
    assert run.state() is RunState.SUCCEEDED
    assert run.finish() == (0, "trained to its last step already\n")


def test_node_when_the_user_is_to_blame_says_one_line_without_a_traceback(
    make_run: Callable[..., NodeRun],
) -> None:
    run = make_run("write_exit(2, 'train.toml: x: got 1; use 2', 'Traceback: ...'); sys.exit(2)")
    assert run.finish() == (2, "error: train.toml: x: got 1; use 2\n")
    assert run.layout.node_log(0).read_text() == "error: train.toml: x: got 1; use 2\n"


def test_node_when_stopped_with_checkpoints_off_leaves_nothing_to_requeue(
    make_run: Callable[..., NodeRun],
) -> None:
    run = make_run("stop.touch(); requeue.touch()", "checkpoint.enable=false")
    cause = "asked to stop; nothing was saved: its checkpoints are off"
    code, _ = run.finish()
    (attempt,) = run.attempts()
    assert (code, attempt.outcome, attempt.cause) == (0, "stopped", cause)
    assert not run.layout.requeue.exists()


def test_node_under_slurm_when_stopped_again_and_again_before_a_step_gives_up(
    make_run: Callable[..., NodeRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHX_JOB_ID", "titan_slurm://titan-recipes/7")
    run = make_run("stop.touch(); requeue.touch()")
    for number in range(1, 6):
        assert run.finish()[0] == 0
        assert run.layout.requeue.exists() == (number < 5)
    assert [(a.outcome, a.final) for a in run.attempts()] == [("stopped", False)] * 4 + [
        ("stopped", True)
    ]
    status = run_status(run.layout)
    words = "asked to stop; 5 times in a row before its first step: it needs more time"
    assert (status.state, status.cause) == (RunState.STOPPED, words)


def test_node_when_started_again_without_its_checkpoints_refuses(
    make_run: Callable[..., NodeRun],
) -> None:
    run = make_run("commit(7); stop.touch(); requeue.touch()")
    assert run.finish()[0] == 0
    shutil.rmtree(run.layout.root / "checkpoints")
    code, output = run.finish()  # as a scheduler that requeues it
    assert code == 2
    assert output.startswith("error: run: the checkpoint of step 7 is gone; put it back into ")
    assert len(run.attempts()) == 1


HANG = """
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
time.sleep(600)
"""


def test_node_when_signalled_twice_kills_the_ranks(make_run: Callable[..., NodeRun]) -> None:
    run = make_run(HANG, ranks=2)
    process = run.start("--job", encode(run.job))
    ranks = [run.rank_pid(1, 0), run.rank_pid(1, 1)]
    process.send_signal(signal.SIGTERM)
    until(run.layout.stop.exists, "the stop file")
    assert run_status(run.layout).cause == "asked to stop; saving a checkpoint"
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    cause = "killed by a second signal before it had saved"
    assert (process.returncode, output) == (0, f"attempt 1 stopped: {cause}\n")
    assert [process_start(pid) for pid in ranks] == [None, None]
    assert failures_in_a_row(run.attempts()) == 0


def test_node_when_the_ranks_do_not_stop_in_time_kills_them(
    make_run: Callable[..., NodeRun],
) -> None:
    run = make_run(HANG, "fault_tolerance.grace_seconds=1")
    process = run.start("--job", encode(run.job))
    rank = run.rank_pid(1, 0)
    run.layout.stop.touch()  # as `cancel` does
    output, _ = process.communicate(timeout=60)
    cause = "killed: not stopped 1 s after it was asked to"
    assert (process.returncode, output) == (0, f"attempt 1 stopped: {cause}\n")
    assert process_start(rank) is None
    assert run.layout.requeue.exists()


def test_node_when_killed_takes_the_ranks_along_and_counts_as_lost(
    make_run: Callable[..., NodeRun],
) -> None:
    run = make_run("time.sleep(0 if attempt == 2 else 600)", ranks=2)
    process = run.start("--job", encode(run.job))
    ranks = [run.rank_pid(1, 0), run.rank_pid(1, 1)]
    assert run.state() is RunState.RUNNING
    assert run.finish() == (
        2,
        f"error: {run.layout.root}: runs already, as process {process.pid}\n",
    )
    process.kill()
    process.wait()
    until(lambda: not any(map(process_start, ranks)), "the ranks' end")
    status = run_status(run.layout)
    assert status.state is RunState.FAILED
    assert status.cause.startswith(f"lost: its process {process.pid} on ")
    assert run.finish() == (0, "")  # a scheduler's restart
    first, second = run.attempts()
    assert first.outcome == "failed"
    assert first.cause.startswith(f"lost: process {process.pid} on ")
    assert second.outcome == "done"


def test_node_when_torchrun_is_killed_ends_its_ranks_before_the_next_attempt(
    make_run: Callable[..., NodeRun],
) -> None:
    run = make_run(
        """
        if attempt == 1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if rank == 0:
                os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)
        for other in root.glob("pid-1-*"):
            assert not pathlib.Path("/proc", other.read_text()).exists()
        """,
        ranks=2,
    )
    code, output = run.finish()
    assert code == 0
    assert output.startswith("attempt 1 failed: torchrun ended with -9")
    assert [a.outcome for a in run.attempts()] == ["failed", "done"]


def test_node_when_there_are_two_meets_the_other_and_leaves_retries_to_the_scheduler(
    make_run: Callable[..., NodeRun],
) -> None:
    run = make_run(
        """
        assert os.environ["WORLD_SIZE"] == "2"
        print("rank", rank, "attempt", attempt, flush=True)
        sys.exit(5)
        """
    )
    nodes = ["--job", encode(run.job), "--nodes", "2", "--run-id", "7"]
    second = run.start(*nodes, "--node-rank", "1")
    first = run.start(*nodes, "--node-rank", "0")
    output, other_output = (p.communicate(timeout=120)[0] for p in (first, second))
    assert "rank 0 attempt 1" in output
    assert "rank 1 attempt 1" in other_output
    assert run.layout.node_log(1).read_text() == other_output
    assert first.returncode != 0
    assert second.returncode != 0
    (attempt,) = run.attempts()
    assert (attempt.outcome, attempt.final) == ("failed", False)


def test_claim_takes_the_next_free_number_unless_a_live_process_has_it(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path)
    assert claim(layout, 1) == 1
    with pytest.raises(LaunchError, match=f"process {os.getpid()} on .* has just begun"):
        claim(layout, 1)
    gone = {"host": socket.gethostname(), "pid": 2**22 + 1, "pid_start": 1}
    (layout.attempt(1) / "node.json").write_text(json.dumps(gone))
    (layout.attempt(2)).mkdir()
    (layout.attempt(2) / "exit.json").touch()
    assert claim(layout, 1) == 3


def test_adopt_job_after_a_resume_with_more_steps_takes_the_directory_s(tmp_path: Path) -> None:
    layout, launched = RunLayout(tmp_path / "run"), debug_job("training.steps=20")
    assert adopt_job(layout, encode(launched)) == launched
    longer = change(launched, ["training.steps=40", "checkpoint.interval=7"])
    layout.job.write_text(to_toml(longer))
    assert adopt_job(layout, encode(launched)) == longer
    for other in ("training.seq_len=64", "training.steps=21"):
        with pytest.raises(LaunchError, match="holds a run of another job"):
            adopt_job(layout, encode(debug_job(other)))


def test_second_node_when_the_run_is_to_stop_or_over_leaves_with_its_code(
    make_run: Callable[..., NodeRun],
) -> None:
    run = make_run("")
    run.layout.root.mkdir(parents=True)
    run.layout.stop.touch()
    second = ["--job", encode(run.job), "--nodes", "2", "--node-rank", "1"]
    assert run.finish(*second) == (0, "")
    run.layout.stop.unlink()
    record = new_record(run.job, name="run", scheduler="slurm", handle="", command=())
    write_record(run.layout, record.with_attempt(failed(exit_code=3)))
    assert run.finish(*second) == (3, "")


def test_second_node_when_the_first_failed_before_it_came_leaves_at_once(
    make_run: Callable[..., NodeRun],
) -> None:
    run = make_run("")
    run.layout.root.mkdir(parents=True)
    record = new_record(run.job, name="run", scheduler="slurm", handle="", command=())
    write_record(run.layout, record.with_attempt(failed(started=now(), final=False)))
    run.layout.requeue.write_text(AGAIN)
    second = ["--job", encode(run.job), "--nodes", "2", "--node-rank", "1"]
    assert run.finish(*second) == (1, "")


def test_node_when_the_run_went_on_elsewhere_ends_its_ranks_and_writes_nothing(
    make_run: Callable[..., NodeRun],
) -> None:
    run = make_run("time.sleep(600)")
    node = run.start("--job", encode(run.job))
    rank = run.rank_pid(1, 0)
    before = run.layout.record.read_bytes()
    run.layout.attempt(2).mkdir()
    output, _ = node.communicate(timeout=120)
    assert output == "attempt 1 left: another node has begun the next one\n"
    assert node.returncode == 1
    assert process_start(rank) is None
    assert run.layout.record.read_bytes() == before


def test_node_when_the_directory_holds_another_job_refuses(
    make_run: Callable[..., NodeRun], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("")
    arguments = ["--run-dir", str(run.layout.root), "--job"]
    run.layout.root.mkdir(parents=True)
    (run.layout.job).write_text("")
    assert main([*arguments, encode(run.job)]) == 2
    assert "job.toml" in capsys.readouterr().err
    assert main([*arguments, "garbage"]) == 2
    assert "not an encoded job" in capsys.readouterr().err


def failures(*ends: tuple[int, int]) -> str:
    """What torchrun of the installed torch reports for these (rank, exit code), in this order."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    made = {rank: ProcessFailure(rank, 100 + rank, code, "") for rank, code in ends}
    return str(ChildFailedError("worker", made))


PEER_LOST = RankExit(1, 0, "RuntimeError: connection closed by peer", "Traceback", 11)


@pytest.mark.parametrize(
    ("report", "written", "code", "rank", "cause"),
    [
        (failures((1, -9)), None, 1, 1, "rank 1 was killed by SIGKILL (out of memory?)"),
        (failures((0, 1), (1, -9)), PEER_LOST, 1, 1, "rank 1 was killed by SIGKILL"),
        (failures((0, 1), (3, -11)), PEER_LOST, 1, 3, "rank 3 was killed by SIGSEGV"),
        (failures((0, 1), (1, -6)), PEER_LOST, 1, 0, PEER_LOST.cause),  # NCCL's own abort
        (failures((1, -6)), None, 1, 1, "rank 1 was killed by SIGABRT (a collective timed out?)"),
        (failures((0, 2), (1, -9)), RankExit(2, 0, "bad key"), 2, 0, "bad key"),
        (failures((0, 3)), None, 3, 0, "rank 0 ended with 3"),
        (failures((0, 1)), RankExit(0, 1, ""), 1, 0, "rank 0 ended with 1"),
        ("no port left", None, 1, -1, "torchrun ended with 1: no port left"),
        (
            "torch.distributed.elastic.multiprocessing.api.SignalException: "
            "Process 67 got signal: 15",
            None,
            1,
            -1,
            "ended by SIGTERM before it had saved",
        ),
    ],
)
def test_explain_names_the_first_cause(
    report: str, written: RankExit | None, code: int, rank: int, cause: str
) -> None:
    why = explain(1, report, written)
    assert (why.code, why.rank) == (code, rank)
    assert why.cause.startswith(cause)
    assert "\n" not in why.cause


def test_port_of_one_node_is_none_that_a_connection_may_take_first() -> None:
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = {rendezvous(1, 0, "", "").port for _ in range(20)}
    assert len(ports) > 1
    assert max(ports) < lowest
