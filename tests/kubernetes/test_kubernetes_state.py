"""How a run stands, from what a cluster says of its object and its pods."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from past_runs import attempt

from tests.kubernetes.api_handler import Key, LogFile
from tests.kubernetes.api_server import ApiServer
from tests.kubernetes.pod_runs import IMAGE, Place, start
from titan_recipes.config.layout import RunLayout
from titan_recipes.launch import kubernetes_client, kubernetes_mirror, kubernetes_pods
from titan_recipes.launch.kubernetes_pods import container_of, forget_answers, has_started
from titan_recipes.launch.kubernetes_submission import submitted
from titan_recipes.launch.record import read_record, write_record
from titan_recipes.launch.run_state import RunState, RunStatus
from titan_recipes.launch.state import run_status

PODS: Key = ("v1", "pods", "ml")
KEYS: dict[str, Key] = {
    "jobset": ("jobset.x-k8s.io/v1alpha2", "jobsets", "ml"),
    "trainjob": ("trainer.kubeflow.org/v1alpha1", "trainjobs", "ml"),
    "volcano": ("batch.volcano.sh/v1alpha1", "jobs", "ml"),
}


def say(api: ApiServer, layout: RunLayout, **status: Any) -> None:
    """Let the run's object have a status."""
    where = submitted(layout)
    assert where is not None
    key = KEYS[where.kind]
    api.put(key, api.objects[key][where.name] | {"status": status})


def add_pod(api: ApiServer, index: int = 0, phase: str = "Pending", **status: Any) -> str:
    """A pod of the run named a; its uid."""
    labels = {"titan-recipes/submission": "a"}
    labels |= {"batch.kubernetes.io/job-completion-index": str(index)}
    body = {
        "metadata": {"name": f"a-trainer-0-{index}-xyz", "labels": labels},
        "spec": {"containers": [{"name": "trainer", "image": IMAGE}]},
        "status": {"phase": phase, **status},
    }
    uid = api.make(PODS, body)["metadata"]["uid"]
    api.logs[uid] = LogFile(is_open=False)
    return uid


def container(**state: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"name": "trainer", "state": state}]}


def asked(layout: RunLayout) -> RunStatus:
    forget_answers()
    return run_status(layout)


@pytest.fixture
def layout(api: ApiServer, place: Place) -> RunLayout:
    """A run that was submitted as a JobSet."""
    return start(place, "a", place.job())


UNSCHEDULABLE = {
    "conditions": [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": "0/4 nodes are available: 4 Insufficient nvidia.com/gpu.",
        }
    ]
}


NO_USER = container(terminated={"exitCode": 128, "reason": "StartError", "message": "no such user"})


@pytest.mark.parametrize(
    ("pods", "cause"),
    [
        ([], "no pods yet"),
        ([UNSCHEDULABLE], "Unschedulable: 0/4 nodes are available: 4 Insufficient nvidia.com/gpu."),
        (
            [container(running={}) | {"phase": "Running"}, UNSCHEDULABLE],
            "1 of 2 pods wait: Unschedulable: 0/4 nodes are available: 4 Insufficient "
            "nvidia.com/gpu.",
        ),
        (
            [container(waiting={"reason": "ImagePullBackOff", "message": "no such image"})],
            "ImagePullBackOff: no such image",
        ),
        ([container(waiting={"reason": "ContainerCreating"})], "its pods start"),
        ([container(running={}) | {"phase": "Running"}], "starting"),
        (
            [NO_USER | {"phase": "Failed"}],
            "its pods have ended; new ones come; after: pod 0: no such user (StartError exit 128)",
        ),
        (
            [NO_USER | {"phase": "Failed"}, container(running={}) | {"phase": "Running"}],
            "starting; after: pod 0: no such user (StartError exit 128)",
        ),
    ],
)  # fmt: skip
def test_run_that_waits_says_for_what(
    api: ApiServer, layout: RunLayout, pods: list[dict[str, Any]], cause: str
) -> None:
    for index, status in enumerate(pods):
        add_pod(api, index, **status)
    assert asked(layout) == RunStatus(RunState.PENDING, cause)


def test_gang_that_restarts_before_any_attempt_says_why(api: ApiServer, layout: RunLayout) -> None:
    add_pod(api, 0, **container(waiting={"reason": "ContainerCreating"}))
    say(api, layout, restarts=4)
    assert asked(layout).cause == "its pods start; after: 4 restarts"
    event = {
        "metadata": {"name": "event"},
        "type": "Warning",
        "reason": "FailedMount",
        "message": 'persistentvolumeclaim "runs" not found',
        "involvedObject": {"name": "a-trainer-0-0-abc"},
    }
    api.make(("v1", "events", "ml"), event)
    assert asked(layout) == RunStatus(
        RunState.PENDING,
        'its pods start; after: FailedMount: persistentvolumeclaim "runs" not found',
    )


@pytest.mark.parametrize("version", ["v1beta2", "v1beta1"])
def test_suspended_job_gives_the_words_of_kueue(
    api: ApiServer, layout: RunLayout, version: str
) -> None:
    api.installed -= {
        (f"kueue.x-k8s.io/{other}", "workloads") for other in {"v1beta1", "v1beta2"} - {version}
    }
    say(api, layout, conditions=[{"type": "Suspended", "status": "True"}])
    assert asked(layout).cause == "suspended: no queue has admitted it yet"
    where = submitted(layout)
    assert where is not None
    no_quota = {"type": "QuotaReserved", "status": "False", "message": "insufficient quota: gpu"}
    workload = {
        "metadata": {"name": "w", "labels": {"kueue.x-k8s.io/job-uid": where.uid}},
        "status": {"conditions": [no_quota]},
    }
    api.make((f"kueue.x-k8s.io/{version}", "workloads", "ml"), workload)
    assert asked(layout) == RunStatus(RunState.PENDING, "suspended: insufficient quota: gpu")


def test_pods_that_can_not_be_made_are_told_by_their_event(
    api: ApiServer, layout: RunLayout
) -> None:
    for name, message in (("a-trainer-0", "exceeded quota: gpus"), ("ab", "not ours")):
        event = {
            "metadata": {"name": f"event-{name}"},
            "type": "Warning",
            "reason": "FailedCreate",
            "message": message,
            "involvedObject": {"name": name},
            "lastTimestamp": "2026-01-01T00:00:00Z",
        }
        api.make(("v1", "events", "ml"), event)
    assert asked(layout) == RunStatus(RunState.PENDING, "FailedCreate: exceeded quota: gpus")


@pytest.mark.parametrize(
    ("kind", "status", "state"),
    [
        ("jobset", {"conditions": [{"type": "Completed", "status": "True"}]}, RunState.SUCCEEDED),
        ("trainjob", {"conditions": [{"type": "Complete", "status": "True"}]}, RunState.SUCCEEDED),
        ("volcano", {"state": {"phase": "Completed"}}, RunState.SUCCEEDED),
        ("jobset", {"conditions": [{"type": "Failed", "status": "True"}]}, RunState.FAILED),
        ("trainjob", {"conditions": [{"type": "Failed", "status": "True"}]}, RunState.FAILED),
        ("volcano", {"state": {"phase": "Aborted"}}, RunState.FAILED),
        ("volcano", {"state": {"phase": "Terminated"}}, RunState.FAILED),
        ("jobset", {"conditions": [{"type": "Failed", "status": "False"}]}, RunState.PENDING),
        ("volcano", {"state": {"phase": "Pending", "message": "no room"}}, RunState.PENDING),
    ],
)
def test_end_of_each_kind_is_known(
    api: ApiServer, place: Place, kind: str, status: dict[str, Any], state: RunState
) -> None:
    layout = start(place, "a", place.job(kind=kind))
    say(api, layout, **status)
    assert asked(layout).state is state


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (
            container(terminated={"exitCode": 137, "reason": "OOMKilled"}),
            "pod 1: OOMKilled: it used more memory than its limit (exit 137)",
        ),
        (
            container(terminated={"exitCode": 2, "reason": "Error", "message": "x\nerror: bad\n"}),
            "pod 1: error: bad (exit 2)",
        ),
        (
            container(terminated={"exitCode": 128, "reason": "StartError", "message": "no python"}),
            "pod 1: no python (StartError exit 128)",
        ),
        ({"reason": "Evicted", "message": "disk"}, "pod 1: Evicted: disk"),
        (
            {"reason": "Evicted", "message": "disk", **container(terminated={"exitCode": 137})},
            "pod 1: Evicted: disk (exit 137)",
        ),
        ({}, "gave up"),
    ],
)
def test_failed_run_without_an_attempt_gives_its_containers_error(
    api: ApiServer, layout: RunLayout, status: dict[str, Any], cause: str
) -> None:
    add_pod(api, 1, "Failed", **status)
    failed = {"type": "Failed", "status": "True", "message": "gave up"}
    say(api, layout, conditions=[failed])
    assert asked(layout) == RunStatus(RunState.FAILED, cause)


def test_failed_run_gives_the_last_attempts_cause_first(api: ApiServer, layout: RunLayout) -> None:
    record = read_record(layout)
    last = attempt(1, outcome="failed", cause="loss is nan", exit_code=3, final=False)
    handle = "titan_kubernetes://titan-recipes/ml:a"
    write_record(layout, replace(record.with_attempt(last), handle=handle))
    add_pod(api, 0, "Failed", **container(terminated={"exitCode": 3}))
    say(api, layout, conditions=[{"type": "Failed", "status": "True"}])
    assert asked(layout) == RunStatus(RunState.FAILED, "loss is nan")


def test_cluster_that_can_not_be_asked_leaves_what_was_seen_last(
    api: ApiServer, layout: RunLayout
) -> None:
    api.stop()
    found = asked(layout)
    assert found.state is RunState.PENDING
    assert found.cause.startswith(f"as last seen: {api.url}: ")
    assert "is the cluster up" in found.cause


def test_many_runs_wait_once_for_a_cluster_that_does_not_answer(
    api: ApiServer, layout: RunLayout, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = start(place, "b", place.job())
    monkeypatch.setattr(kubernetes_client, "READ_SECONDS", 0.2)
    api.fail_next("GET", "jobsets", hang=True, times=9)
    asked(layout)
    api.requests.clear()
    assert "no answer in time" in run_status(other).cause
    assert api.requests == []


def test_server_is_asked_once_in_a_while(
    api: ApiServer, layout: RunLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (kubernetes_pods, kubernetes_mirror):
        monkeypatch.setattr(module, "ASK_SECONDS", 60.0)
    asked(layout)
    first = len(api.requests)
    for _ in range(20):
        run_status(layout)
    assert len(api.requests) == first


def test_object_of_the_same_name_that_is_not_ours_is_no_answer(
    api: ApiServer, layout: RunLayout
) -> None:
    thing = api.remove(KEYS["jobset"], "a")
    assert thing is not None
    api.make(KEYS["jobset"], thing)
    assert asked(layout) == RunStatus(RunState.FAILED, "lost: JobSet ml/a was deleted")


def test_kubelets_words_for_a_log_it_lost_are_no_words_of_the_pod(
    api: ApiServer, layout: RunLayout
) -> None:
    uid = add_pod(api, 0, "Running", **container(running={}))
    api.print_line(uid, "step 1")
    asked(layout)
    api.logs[uid] = LogFile([], is_open=False, lost="unable to retrieve container logs for x://1")
    kubernetes_mirror._mirrored.clear()
    asked(layout)
    assert layout.node_log(0).read_text() == "step 1\n"


def test_log_of_a_pod_with_a_container_put_before_ours_is_ours(
    api: ApiServer, layout: RunLayout
) -> None:
    add_pod(api, 0, "Running", **container(running={}))
    pod = api.objects[PODS]["a-trainer-0-0-xyz"]
    pod["spec"]["containers"].insert(0, {"name": "istio-proxy", "image": "proxy"})
    assert (container_of(pod), has_started(pod)) == ("trainer", True)


def test_log_that_can_not_be_read_does_not_hide_the_end(api: ApiServer, layout: RunLayout) -> None:
    add_pod(api, 0, "Succeeded", **container(terminated={"exitCode": 0}))
    say(api, layout, conditions=[{"type": "Completed", "status": "True"}])
    api.fail_next("GET", "/log", 403, message="no", times=99)
    states = [asked(layout).state]
    while not states[-1].is_final:
        kubernetes_mirror._mirrored.clear()
        states.append(asked(layout).state)
        assert len(states) < 9
    assert states[-1] is RunState.SUCCEEDED


def test_what_was_never_submitted_is_lost_after_a_while(api: ApiServer, layout: RunLayout) -> None:
    layout.kubernetes.unlink()
    assert run_status(layout).state is RunState.PENDING
    record = read_record(layout)
    old = datetime(2020, 1, 1, tzinfo=UTC).isoformat()
    write_record(layout, replace(record, created=old))
    assert run_status(layout) == RunStatus(RunState.FAILED, "lost: it was never submitted")
