"""The node entry point in a pod: what it prints for the launcher, how it ends, when it begins."""

import json
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from live_runs import stand_in_torchrun, until
from node_runs import NodeRun
from past_runs import attempt as past_attempt

from titan_recipes.config.job import encode, read_job
from titan_recipes.config.layout import ATTEMPT_MARK
from titan_recipes.config.site import Container
from titan_recipes.errors import LaunchError
from titan_recipes.launch.changes import adopt_job, change
from titan_recipes.launch.pod import WAITING, pod_exit_code
from titan_recipes.launch.torchrun import rendezvous

HANDLE = "titan_kubernetes://titan-recipes/default:run"
SAVES_WHEN_ASKED = """
    saved = len(list(root.glob("checkpoints/*")))
    print("rank", rank, "of attempt", attempt, "goes on from", saved, flush=True)
    (root / f"at-{attempt}-{rank}").touch()
    while not stop.exists():
        time.sleep(0.01)
    if rank == 0:
        commit(attempt)
        requeue.touch()
    sys.exit(0)
"""


@pytest.fixture(autouse=True)
def in_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHX_JOB_ID", HANDLE)


@pytest.fixture
def quick_torchrun(tmp_path: Path) -> None:
    """torchrun stood in for, as in live_runs: how it ends plays no part."""
    stand_in_torchrun(tmp_path / "modules")


def told(output: str) -> list[dict[str, Any]]:
    """The attempts that a node told its launcher of."""
    marked = [line for line in output.splitlines() if line.startswith(ATTEMPT_MARK)]
    return [json.loads(line.removeprefix(ATTEMPT_MARK)) for line in marked]


@pytest.mark.usefixtures("quick_torchrun")
def test_pod_when_the_run_ends_tells_each_change_of_its_attempt_and_what_its_ranks_wrote(
    make_run: Callable[..., NodeRun],
) -> None:
    run = make_run(
        """
        log = os.open(root / f"logs/rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(log, b"raw words\\nand the rest")
        print("a line for people", flush=True)
        commit(7)
        """
    )
    code, output = run.finish("--job", encode(run.job), "--in-pod")
    began, ended = told(output)
    assert (code, began["outcome"], ended["outcome"], ended["step_to"]) == (0, "running", "done", 7)
    for line in ("a line for people", "[rank 0] raw words", "[rank 0] and the rest"):
        assert line in output.splitlines()
    assert run.layout.node_log(0).read_text() == "a line for people\n"


@pytest.mark.parametrize(
    ("trainer", "code"),
    [("sys.exit(5)", 5), ("write_exit(2, 'bad'); sys.exit(2)", 2), ("rank or commit(1)", 0)],
)
def test_pod_when_its_attempt_ends_exits_so_that_kubernetes_retries_what_may_be(
    make_run: Callable[..., NodeRun], trainer: str, code: int
) -> None:
    run = make_run(trainer, "plan.nodes=2")  # one of two: it is Kubernetes that starts it again
    nodes = ["--job", encode(run.job), "--in-pod", "--nodes", "2", "--run-id", "run"]
    second = run.start(*nodes, "--node-rank", "1")
    first = run.start(*nodes, "--node-rank", "0")
    outputs = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [code, code], outputs


@pytest.mark.usefixtures("quick_torchrun")
def test_pod_when_the_run_is_given_up_exits_3(make_run: Callable[..., NodeRun]) -> None:
    run = make_run("sys.exit(1)", "fault_tolerance.max_restarts=0")
    code, output = run.finish("--job", encode(run.job), "--in-pod")
    assert (code, told(output)[-1]["final"]) == (3, True)
    assert run.finish("--job", encode(run.job), "--in-pod")[0] == 3  # started again all the same
    assert len(run.attempts()) == 1


@pytest.mark.usefixtures("quick_torchrun")
def test_pod_when_evicted_saves_and_exits_143_and_the_next_pods_go_on(
    make_run: Callable[..., NodeRun],
) -> None:
    run = make_run(SAVES_WHEN_ASKED, "plan.nodes=2")
    nodes = ["--job", encode(run.job), "--in-pod", "--nodes", "2", "--run-id", "run"]
    for number in (1, 2):
        second = run.start(*nodes, "--node-rank", "1")
        first = run.start(*nodes, "--node-rank", "0")
        until(lambda n=number: (run.layout.root / f"at-{n}-1").exists(), f"attempt {number}")
        until(lambda n=number: (run.layout.root / f"at-{n}-0").exists(), f"attempt {number}")
        second.send_signal(signal.SIGTERM)  # either pod: the run directory tells the other
        outputs = [process.communicate(timeout=120)[0] for process in (first, second)]
        assert [first.returncode, second.returncode] == [143, 143], outputs
        assert f"rank 0 of attempt {number} goes on from {number - 1}" in outputs[0]
    assert [(a.outcome, a.final, a.step_to) for a in run.attempts()] == [
        ("stopped", False, 1),
        ("stopped", False, 2),
    ]


@pytest.mark.usefixtures("quick_torchrun")
def test_pods_when_the_last_attempt_failed_a_moment_ago_all_take_part_in_the_next(
    make_run: Callable[..., NodeRun],
) -> None:
    run = make_run("attempt > 1 or sys.exit(1)", "plan.nodes=2")
    nodes = ["--job", encode(run.job), "--in-pod", "--nodes", "2", "--run-id", "run"]
    for codes in ([1, 1], [0, 0]):
        second = run.start(*nodes, "--node-rank", "1")
        until(lambda: run.layout.node_log(1).exists(), "node 1, who comes first")
        first = run.start(*nodes, "--node-rank", "0")
        outputs = [process.communicate(timeout=120)[0] for process in (first, second)]
        assert [first.returncode, second.returncode] == codes, outputs
        assert run.layout.requeue.exists() == (codes == [1, 1])


@pytest.mark.usefixtures("quick_torchrun")
def test_pod_when_another_one_is_late_waits_and_begins_no_attempt(
    make_run: Callable[..., NodeRun],
) -> None:
    run = make_run("rank or commit(1)", "plan.nodes=2")
    nodes = ["--job", encode(run.job), "--in-pod", "--nodes", "2", "--run-id", "run"]
    first = run.start(*nodes, "--node-rank", "0")
    log = run.layout.node_log(0)
    until(lambda: log.exists() and WAITING in log.read_text(), "node 0")
    first.send_signal(signal.SIGTERM)
    output, _ = first.communicate(timeout=60)
    assert (first.returncode, told(output), run.layout.record.exists()) == (143, [], False)
    # The stop file that it left is not the next pods': they train.
    second = run.start(*nodes, "--node-rank", "1")
    first = run.start(*nodes, "--node-rank", "0")
    outputs = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs


@pytest.mark.usefixtures("quick_torchrun")
def test_pods_when_one_is_late_all_wait_and_outlive_a_node_0_that_was_replaced(
    make_run: Callable[..., NodeRun],
) -> None:
    run = make_run("rank or commit(1)", "plan.nodes=3", "training.global_batch_size=6")
    nodes = ["--job", encode(run.job), "--in-pod", "--nodes", "3", "--run-id", "run"]
    early = run.start(*nodes, "--node-rank", "1")
    lost = run.start(*nodes, "--node-rank", "0")
    log = run.layout.node_log(0)
    until(lambda: log.exists() and WAITING in log.read_text(), "node 0")
    lost.kill()
    lost.wait()
    first = run.start(*nodes, "--node-rank", "0")
    until(lambda: log.read_text().count(WAITING) == 2, "node 0 again")
    late = run.start(*nodes, "--node-rank", "2")
    outputs = [process.communicate(timeout=120)[0] for process in (first, early, late)]
    assert [first.returncode, early.returncode, late.returncode] == [0, 0, 0], outputs


def test_pod_when_the_port_of_its_meeting_is_taken_says_so_and_is_retried(
    make_run: Callable[..., NodeRun],
) -> None:
    run = make_run("", "plan.nodes=2")
    port = rendezvous(2, 0, "127.0.0.1", "run.assembly").port
    with socket.create_server(("", port)):
        nodes = ["--job", encode(run.job), "--in-pod", "--nodes", "2", "--run-id", "run"]
        code, output = run.finish(*nodes, "--node-rank", "0")
    assert (code, told(output), run.layout.record.exists()) == (1, [], False)
    assert output.splitlines()[-1].startswith(f"port {port}: Address already in use")


@pytest.mark.usefixtures("quick_torchrun")
def test_pod_when_stopped_because_another_failed_counts_as_failed(
    make_run: Callable[..., NodeRun],
) -> None:
    run = make_run(
        """
        write_exit(1, "boom") if rank == 1 else (root / "at-0").touch()
        sys.exit(1) if rank == 1 else time.sleep(600)
        """,
        "plan.nodes=2",
        "fault_tolerance.grace_seconds=1",
    )
    nodes = ["--job", encode(run.job), "--in-pod", "--nodes", "2", "--run-id", "run"]
    second = run.start(*nodes, "--node-rank", "1")
    first = run.start(*nodes, "--node-rank", "0")
    until((run.layout.root / "at-0").exists, "rank 0")
    second.communicate(timeout=120)
    first.send_signal(signal.SIGTERM)  # as Kubernetes does then
    first.communicate(timeout=120)
    assert (first.returncode, second.returncode) == (1, 1)
    (attempt,) = run.attempts()
    assert (attempt.outcome, attempt.final, attempt.cause) == ("failed", False, "boom")


@pytest.mark.usefixtures("quick_torchrun")
def test_pod_when_the_volume_has_another_run_of_the_name_refuses(
    make_run: Callable[..., NodeRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("commit(1)")
    assert run.finish("--job", encode(run.job), "--in-pod")[0] == 0
    assert run.finish("--job", encode(run.job), "--in-pod")[0] == 0  # the same: done already
    monkeypatch.setenv("TORCHX_JOB_ID", "titan_kubernetes://titan-recipes/default:other")
    code, output = run.finish("--job", encode(run.job), "--in-pod")
    assert code == 2
    assert f"holds a run of {HANDLE}; give the run another --name" in output


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become another user")
def test_node_when_its_directory_cannot_be_written_says_by_whom(
    make_run: Callable[..., NodeRun], tmp_path: Path
) -> None:
    run = make_run("")
    tmp_path.chmod(0o755)
    run.layout.root.parent.mkdir()
    os.seteuid(4321)
    try:
        with pytest.raises(LaunchError, match=r"can't be written by user \d+, group 0: Permission"):
            adopt_job(run.layout, encode(run.job))
    finally:
        os.seteuid(0)


@pytest.mark.usefixtures("quick_torchrun")
def test_pod_when_resumed_takes_the_new_job_and_counts_as_resumed_once(
    make_run: Callable[..., NodeRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("sys.exit(1)", "fault_tolerance.max_restarts=0")
    assert run.finish("--job", encode(run.job), "--in-pod")[0] == 3
    longer = change(run.job, ["training.steps=99"])
    site = replace(longer.site, container=Container(image="other"))
    elsewhere = replace(longer, site=site, env={"A": "b"})
    again = ("--job", encode(elsewhere), "--in-pod", "--resumed")
    monkeypatch.setenv("TORCHX_JOB_ID", HANDLE + "-2")
    assert run.finish(*again)[0] == 3
    assert read_job(run.layout.job) == elsewhere
    assert [attempt.resumed for attempt in run.attempts()] == [False, True]
    assert run.finish(*again)[0] == 3  # Kubernetes made the same pod again: no third attempt
    assert len(run.attempts()) == 2


@pytest.mark.parametrize(
    ("code", "outcome", "final", "stops", "expected"),
    [
        (0, "done", True, False, 0),
        (0, "stopped", False, True, 143),
        (0, "stopped", True, True, 3),  # five stops in a row, or nothing is ever saved
        (0, "stopped", True, False, 0),  # by a person
        (1, "failed", False, False, 1),
        (1, "failed", True, False, 3),
        (2, "failed", True, False, 2),
        (0, "running", False, True, 143),  # another node, which read the record too early
        (143, "failed", True, True, 143),  # asked to stop before a resumed run began
    ],
)
def test_pod_exit_code(code: int, outcome: Any, final: bool, stops: bool, expected: int) -> None:
    last = past_attempt(outcome=outcome, final=final)
    assert pod_exit_code(code, last, stops=stops) == expected
