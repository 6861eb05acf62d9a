"""Following, cancelling and resuming runs on Kubernetes: real node entry points, small trainers."""

import io
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from live_runs import HOLD_STEP
from rich.console import Console
from training import column

from tests.kubernetes.api_handler import Key
from tests.kubernetes.api_server import ApiServer
from tests.kubernetes.pod_cluster import PodCluster
from tests.kubernetes.pod_runs import (
    NO_RIGHT,
    Place,
    attempts,
    call,
    said,
    start,
    wait_for,
    wait_for_end,
)
from titan_recipes.config.layout import RunLayout
from titan_recipes.launch import kubernetes_mirror, kubernetes_pods
from titan_recipes.launch.follow import EXIT_LEFT, follow
from titan_recipes.launch.kubernetes_client import POD, connect
from titan_recipes.launch.kubernetes_mirror import mirrored
from titan_recipes.launch.run_state import RunStatus
from titan_recipes.launch.runs import open_run
from titan_recipes.launch.state import RunState, run_status
from titan_recipes.launch.status import status_of

PLURALS = {"jobset": "jobsets", "trainjob": "trainjobs", "volcano": "jobs"}
JOBSETS: Key = ("jobset.x-k8s.io/v1alpha2", "jobsets", "ml")
ONE = ("plan.nodes=1", "training.steps=6")


def hold(place: Place, name: str, **own: Any) -> RunLayout:
    """Launch a run that waits at HOLD_STEP until it is stopped."""
    (place.volume / name).mkdir()
    (place.volume / name / "HOLD").touch()
    return start(place, name, place.job(*ONE, **own))


def begin(place: Place, name: str, **own: Any) -> RunLayout:
    """... and wait until it is there."""
    layout = hold(place, name, **own)
    wait_for(lambda: num_rows(layout) == HOLD_STEP, layout)
    return layout


def num_rows(layout: RunLayout) -> int:
    """Steps that this machine has seen, once it has asked."""
    run_status(layout)
    return len(layout.metrics.read_text().splitlines()) if layout.metrics.exists() else 0


def objects(api: ApiServer, kind: str = "jobsets") -> list[str]:
    """Names of what is on the server."""
    return [name for key, there in api.objects.items() if key[1] == kind for name in there]


@pytest.mark.parametrize("kind", ["jobset", "trainjob", "volcano"])
def test_run_followed_to_its_end_leaves_its_record_here(
    place: Place, workers: PodCluster, kind: str
) -> None:
    layout = start(place, "a", place.job(*ONE, kind=kind))
    assert follow(open_run(layout.root)) == 0, said(layout)
    run = open_run(layout.root)
    assert [(one.outcome, one.step_to, one.final) for one in run.record.attempts] == [
        ("done", 6, True)
    ]
    assert run.record.handle == "titan_kubernetes://titan-recipes/ml:a"
    assert run.record.scheduler == "kubernetes"
    assert column(layout.root, "loss") == column(place.volume / "a", "loss")
    shown = status_of(run)
    assert (shown.state, shown.step) == ("SUCCEEDED", 6)
    assert shown.checkpoint == str(place.volume / "a/checkpoints/step-00000006")
    assert layout.node_log(0).read_text() == (place.volume / "a/logs/node-0.log").read_text()


@pytest.mark.parametrize(("kind", "plural"), [*PLURALS.items()])
def test_cancel_saves_and_resume_goes_on_where_it_was(
    place: Place, workers: PodCluster, kind: str, plural: str
) -> None:
    layout = begin(place, "a", kind=kind)
    said_so = call("cancel", layout.root)
    assert f"a STOPPED at step {HOLD_STEP}/6" in said_so.output
    assert "asked a to save a checkpoint and stop" in said_so.output
    (last,) = attempts(layout)
    assert (last.outcome, last.step_to, last.final) == ("stopped", HOLD_STEP, True)
    assert workers.pods() == []
    assert objects(workers.api, plural) == []
    assert layout.node_log(0).read_text() == (place.volume / "a/logs/node-0.log").read_text()

    done = call("resume", layout.root, "--set", "training.steps=8")
    assert done.exit_code == 0, done.output
    assert [(one.outcome, one.step_from, one.step_to) for one in attempts(layout)] == [
        ("stopped", 0, HOLD_STEP),
        ("done", HOLD_STEP, 8),
    ]
    assert attempts(layout)[1].resumed
    assert objects(workers.api, plural) == ["a-r2"]
    assert column(layout.root, "loss") == column(place.volume / "a", "loss")
    assert len(column(layout.root, "loss")) == 8
    assert "reached step 8 already" in call("resume", layout.root).output


def test_cancel_now_kills_and_resume_starts_again(place: Place, workers: PodCluster) -> None:
    layout = begin(place, "a")
    (place.volume / "a" / "DEAF").touch()
    assert "a STOPPED" in call("cancel", layout.root, "--now").output
    (last,) = attempts(layout)
    assert (last.outcome, last.cause, last.step_to) == ("stopped", "killed by cancel --now", 0)
    assert workers.pods() == []
    for flag in ("DEAF", "HOLD"):
        (place.volume / "a" / flag).unlink()
    assert call("resume", layout.root, "--detach").exit_code == 0
    wait_for_end(layout)
    assert len(column(layout.root, "loss")) == 6
    assert [one.outcome for one in attempts(layout)] == ["stopped", "done"]


def test_resume_while_it_runs_is_refused(place: Place, workers: PodCluster) -> None:
    layout = begin(place, "a")
    refused = call("resume", layout.root)
    assert refused.exit_code == 2
    assert "a: is still RUNNING; stop it first: titan-recipes cancel" in refused.output
    call("cancel", layout.root, "--now")


def test_resume_deletes_what_a_killed_resume_left_and_goes_on_after_it(
    place: Place, workers: PodCluster
) -> None:
    workers.held = True
    layout = hold(place, "a")
    call("cancel", layout.root)
    workers.held = False
    known = layout.kubernetes.read_text()
    assert call("resume", layout.root, "--detach").exit_code == 0
    theirs = RunLayout(place.volume / "a").metrics
    wait_for(lambda: theirs.exists() and len(theirs.read_text().splitlines()) == HOLD_STEP, layout)
    layout.kubernetes.write_text(known)  # as it was, had it been killed before it wrote that down
    left = workers.api.objects[JOBSETS]["a-r2"]["metadata"]["uid"]

    done = call("resume", layout.root)
    assert done.exit_code == 0, done.output
    assert objects(workers.api) == ["a-r2"]
    assert workers.api.objects[JOBSETS]["a-r2"]["metadata"]["uid"] != left
    last = attempts(RunLayout(place.volume / "a"))[-2:]
    assert [(one.outcome, one.step_from, one.step_to) for one in last] == [
        ("stopped", 0, HOLD_STEP),
        ("done", HOLD_STEP, 6),
    ]


def test_resume_beside_an_object_that_is_not_ours_is_refused(
    place: Place, workers: PodCluster
) -> None:
    workers.held = True
    layout = hold(place, "a")
    call("cancel", layout.root)
    workers.api.make(JOBSETS, {"metadata": {"name": "a-r2"}, "spec": {"suspend": True}})
    refused = call("resume", layout.root)
    assert (refused.exit_code, "already exists" in refused.output) == (2, True)
    assert objects(workers.api) == ["a-r2"]


def test_expired_login_is_told_once_while_a_run_is_followed(
    place: Place,
    workers: PodCluster,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(kubernetes_pods, "ASK_AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(kubernetes_mirror, "LOGIN_SECONDS", 0.1)
    layout = begin(place, "a")
    workers.api.fail_next("GET", "jobsets/a", 401, message="Unauthorized", times=3)
    workers.api.fail_next("GET", "/log", 401, message="Unauthorized", times=2)
    (place.volume / "a" / "HOLD").unlink()
    screen = io.StringIO()
    assert follow(open_run(layout.root), console=Console(file=screen, width=400)) == 0
    cause = f"{workers.api.url}: does not know you: Unauthorized; log in again: the kubeconfig's"
    assert screen.getvalue().count(f"as last seen: {cause}") == 1
    assert capsys.readouterr().err.count(f"warning: {cause}") == 1


def test_run_that_waits_in_a_queue_is_just_deleted(place: Place, workers: PodCluster) -> None:
    workers.held = True
    layout = hold(place, "a")
    assert run_status(layout).state is RunState.PENDING
    cancelled = call("cancel", layout.root)
    assert "asked a to stop" in cancelled.output
    assert "a STOPPED" in cancelled.output
    assert run_status(layout).cause == "cancelled before it started"
    assert objects(workers.api) == []
    workers.held = False
    (place.volume / "a" / "HOLD").unlink()
    assert call("resume", layout.root).exit_code == 0
    assert [one.outcome for one in attempts(layout)] == ["done"]


def test_killed_pod_is_restarted_and_its_steps_appear_once(
    place: Place, workers: PodCluster
) -> None:
    layout = begin(place, "a")
    workers.kill(0)
    (place.volume / "a" / "HOLD").unlink()
    assert follow(open_run(layout.root)) == 0, said(layout)
    first, second = attempts(layout)
    assert (first.outcome, second.outcome, second.final) == ("failed", "done", True)
    assert first.cause.startswith("lost: process ")
    assert len(column(layout.root, "loss")) == 6


def test_evicted_pod_saves_and_the_gang_goes_on_by_itself(
    place: Place, workers: PodCluster
) -> None:
    layout = begin(place, "a")
    (pod,) = workers.pods()
    with mirrored(layout):
        connect().delete(POD, "ml", pod["metadata"]["name"])
        wait_for(lambda: len(attempts(layout)) > 1, layout)
        (place.volume / "a" / "HOLD").unlink(missing_ok=True)
        wait_for_end(layout)
    first, second = attempts(layout)
    assert (first.outcome, first.step_to, first.final) == ("stopped", HOLD_STEP, False)
    assert (second.outcome, second.step_from) == ("done", HOLD_STEP)
    assert not second.resumed
    assert len(column(layout.root, "loss")) == 6


def test_following_outlives_errors_of_the_server(place: Place, workers: PodCluster) -> None:
    workers.held = True
    layout = start(place, "a", place.job(*ONE))
    workers.api.oldest = 10**9  # every watch begins too late
    workers.api.fail_next("GET", "/log", 404, message="no such pod yet")
    with mirrored(layout):
        workers.held = False
        wait_for_end(layout)
    assert column(layout.root, "loss") == column(place.volume / "a", "loss")
    assert layout.node_log(0).read_text() == (place.volume / "a/logs/node-0.log").read_text()


def test_failure_that_is_not_retried_shows_its_first_error(
    place: Place, workers: PodCluster
) -> None:
    (place.volume / "a").mkdir()
    (place.volume / "a" / "FAIL").touch()
    layout = start(place, "a", place.job(*ONE, "fault_tolerance.max_restarts=0"))
    assert follow(open_run(layout.root)) == 1
    shown = status_of(open_run(layout.root))
    assert shown.state == "FAILED"
    assert shown.cause.endswith("RuntimeError: boom at step 1, after step 1"), shown.cause
    assert shown.cause in call("status", layout.root).output
    assert "boom at step 1" in call("logs", layout.root, "--grep", "Error").output
    assert "boom at step 1" in Path(call("report", layout.root).output.strip()).read_text()


def test_pod_that_ends_before_an_attempt_says_why_in_status(
    place: Place, workers: PodCluster
) -> None:
    (place.volume / "a").mkdir()
    (place.volume / "a" / "job.toml").write_text("[")
    layout = start(place, "a", place.job(*ONE))
    wait_for_end(layout, RunState.FAILED)
    cause = run_status(layout).cause
    assert cause.startswith(f"pod 0: error: {place.volume}/a/job.toml: not TOML")
    assert cause.endswith("(exit 2)")


def test_ctrl_c_leaves_the_run_alone_and_says_how_to_go_on(
    place: Place, workers: PodCluster
) -> None:
    layout = begin(place, "a")
    screen = io.StringIO()
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    assert follow(open_run(layout.root), console=Console(file=screen)) == EXIT_LEFT
    timer.join()
    assert "left; a goes on" in screen.getvalue()
    assert "titan-recipes logs -f a\n" in screen.getvalue()
    assert run_status(layout).state is RunState.RUNNING
    call("cancel", layout.root, "--now")


def test_logs_of_nodes_and_ranks_come_from_their_pods(place: Place, workers: PodCluster) -> None:
    layout = start(place, "a", place.job(*ONE))
    wait_for_end(layout)
    people = call("logs", layout.root).output.splitlines()
    assert [line for line in people if line.startswith("step")] == [
        f"step {step}/6" for step in range(1, 7)
    ]
    assert not any(line.startswith("@") for line in people)
    missing = call("logs", layout.root, "--node", 3)
    assert (missing.exit_code, "there are nodes 0" in missing.output) == (2, True)
    rank = call("logs", layout.root, "--rank", 0)  # which says nothing, but is there
    assert (rank.exit_code, rank.output) == (0, "")


def test_two_shells_on_one_run_write_its_mirror_once(place: Place, workers: PodCluster) -> None:
    layout = hold(place, "a")
    with mirrored(layout), mirrored(layout):
        wait_for(lambda: num_rows(layout) == HOLD_STEP, layout)
        (place.volume / "a" / "HOLD").unlink()
        wait_for_end(layout)
    assert layout.node_log(0).read_text() == (place.volume / "a/logs/node-0.log").read_text()
    assert len(column(layout.root, "loss")) == 6


def test_run_directory_that_pods_share_with_us_is_left_to_them(
    place: Place, workers: PodCluster
) -> None:
    place.outputs = place.volume
    layout = start(place, "a", place.job(*ONE))
    (layout.root / "HOLD").touch()
    with mirrored(layout):
        wait_for(lambda: num_rows(layout) == HOLD_STEP, layout)
    assert "a STOPPED at step 3/6" in call("cancel", layout.root).output
    assert call("resume", layout.root).exit_code == 0
    log = layout.node_log(0).read_text().splitlines()
    assert log.count(f"step {HOLD_STEP}/6") == 1
    assert [(one.outcome, one.step_to) for one in attempts(layout)] == [("stopped", 3), ("done", 6)]
    assert len(column(layout.root, "loss")) == 6
    assert not (layout.mirror / "node-0.json").exists()
    assert status_of(open_run(layout.root)).checkpoint.startswith(str(layout.root))


def test_cancel_that_the_cluster_refuses_changes_nothing(place: Place, workers: PodCluster) -> None:
    layout = begin(place, "a")
    workers.api.fail_next("DELETE", "jobsets", 403, message=NO_RIGHT)
    refused = call("cancel", layout.root)
    assert (refused.exit_code, "not allowed to delete jobsets" in refused.output) == (2, True)
    assert run_status(layout) == RunStatus(RunState.RUNNING)
    call("cancel", layout.root, "--now")


def test_deleted_object_of_a_run_is_told_as_lost(place: Place, workers: PodCluster) -> None:
    layout = begin(place, "a")
    (place.volume / "a" / "DEAF").touch()
    workers.kill(0)
    workers.api.remove(("jobset.x-k8s.io/v1alpha2", "jobsets", "ml"), "a")
    wait_for_end(layout, RunState.FAILED)
    assert run_status(layout).cause == "lost: JobSet ml/a was deleted"
