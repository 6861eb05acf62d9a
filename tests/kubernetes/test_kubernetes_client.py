"""The client against a real TCP server: what it asks, and a clear line for all that goes wrong."""

import json
import re
import socket
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.api_handler import Key
from tests.kubernetes.api_server import ApiServer
from titan_recipes.config.data_root import install_command
from titan_recipes.errors import LaunchError
from titan_recipes.launch import kubernetes_client
from titan_recipes.launch.kubernetes_client import POD, Api, check_installed, connect
from titan_recipes.launch.kubernetes_errors import EXPIRED, KubernetesError, NotInstalled
from titan_recipes.render.kubernetes import CLAIM, RESOURCES

JOBSET = RESOURCES["jobset"]
PODS: Key = ("v1", "pods", "ml")


def claim(name: str = "runs", **annotations: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }


def pod(api: ApiServer, name: str, **labels: str) -> dict[str, Any]:
    """A pod whose container runs."""
    body = {
        "metadata": {"name": name, "labels": labels},
        "spec": {"containers": [{"name": "trainer", "image": "x"}]},
        "status": {"containerStatuses": [{"name": "trainer", "state": {"running": {}}}]},
    }
    return api.make(PODS, body)


def lines_of(stream: kubernetes_client.Stream) -> list[str]:
    return [line for lines in stream.lines() for line in lines]


def test_objects_are_made_found_and_deleted(api: ApiServer) -> None:
    made = connect().create(CLAIM, "ml", claim())
    assert made["metadata"]["uid"]
    assert connect().get(CLAIM, "ml", "runs") == made
    assert connect().get(CLAIM, "ml", "other") is None
    assert connect().delete(CLAIM, "ml", "runs")
    assert not connect().delete(CLAIM, "ml", "runs")
    assert ("POST", "/api/v1/namespaces/ml/persistentvolumeclaims?fieldValidation=Strict") in (
        api.requests
    )


def test_find_gives_what_its_selector_fits_and_a_version(api: ApiServer) -> None:
    pod(api, "a-0", run="a")
    pod(api, "b-0", run="b")
    found, version = connect().find(POD, "ml", labels="run=b")
    assert [one["metadata"]["name"] for one in found] == ["b-0"]
    assert int(version) == api.version


def test_unknown_field_is_refused_by_name(api: ApiServer) -> None:
    body = claim()
    body["spec"]["storage"] = "1Gi"
    with pytest.raises(KubernetesError, match=r"can't create persistentvolumeclaims.*storage"):
        connect().create(CLAIM, "ml", body)


@pytest.mark.parametrize(
    ("code", "said", "expected"),
    [
        (401, "Unauthorized", "does not know you: Unauthorized; log in again: the kubeconfig's"),
        (
            403,
            'User "me" cannot create resource "persistentvolumeclaims"',
            "not allowed to create persistentvolumeclaims in namespace ml: User \"me\" cannot",
        ),
        (
            403,
            'claims "runs" is forbidden: exceeded quota: team',
            'ml: claims "runs" is forbidden: exceeded quota: team (HTTP 403)',
        ),
        (409, 'being deleted: claims "runs" already exists', "; try again once it is gone"),
        (409, 'claims "runs" already exists', 'already exists; choose another --name'),
        (422, "spec.accessModes: Required value", "ml: spec.accessModes: Required value (HTTP 422"),
        (404, 'namespaces "ml" not found', 'namespaces "ml" not found (HTTP 404)'),
    ],
)  # fmt: skip
def test_refusal_is_one_line_with_the_servers_words(
    api: ApiServer, code: int, said: str, expected: str
) -> None:
    api.fail_next("POST", "claims", code, message=said)
    with pytest.raises(KubernetesError) as caught:
        connect().create(CLAIM, "ml", claim())
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.status == code
    assert len(api.requests) == 1


def test_user_without_rights_to_a_kind_is_told_that_it_may_not_be_there(api: ApiServer) -> None:
    said = 'User "me" cannot get resource "jobsets" in API group "jobset.x-k8s.io"'
    api.fail_next("GET", "jobsets", 403, message=said)
    with pytest.raises(KubernetesError, match="a role that may, and whether JobSet is installed"):
        connect().get(JOBSET, "ml", "a")


def test_kind_that_is_not_installed_is_named(api: ApiServer) -> None:
    api.installed.discard((JOBSET.api_version, JOBSET.plural))
    with pytest.raises(NotInstalled) as caught:
        connect().get(JOBSET, "ml", "a")
    assert str(caught.value) == (
        f"{api.url}: has no jobset.x-k8s.io/v1alpha2; install JobSet there, or choose another "
        "kubernetes.kind in the profile"
    )


@pytest.mark.parametrize("code", [429, 500, 503])
def test_busy_server_is_asked_again(
    api: ApiServer, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_client, "BACKOFF_SECONDS", (0.01, 0.01))
    api.fail_next("GET", "claims", code, times=2)
    api.fail_next("POST", "claims", code, times=2)
    connect().create(CLAIM, "ml", claim())
    assert connect().get(CLAIM, "ml", "runs")
    assert [method for method, _ in api.requests] == ["POST"] * 3 + ["GET"] * 3


def test_server_that_stays_busy_is_given_up(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_client, "BACKOFF_SECONDS", (0.01,))
    api.fail_next("GET", "pods", 500, message="etcd is away", times=9)
    with pytest.raises(KubernetesError, match=r"can't list pods .*: etcd is away \(HTTP 500\)"):
        connect().find(POD, "ml")


def test_retry_after_is_what_is_waited(api: ApiServer) -> None:
    api.fail_next("GET", "pods", 429, headers={"Retry-After": "1"})
    began = time.monotonic()
    connect().find(POD, "ml")
    assert time.monotonic() - began >= 1


def test_created_object_whose_answer_was_lost_is_taken_for_ours(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_client, "BACKOFF_SECONDS", (0.01,))
    ours = claim(**{"titan-recipes/run-dir": "/outputs/a"})
    api.fail_next("POST", "claims", drop=True)
    assert connect().create(CLAIM, "ml", ours)["metadata"]["uid"]
    assert [method for method, _ in api.requests] == ["POST", "POST", "GET"]


def test_object_of_another_run_is_not_taken_for_ours(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_client, "BACKOFF_SECONDS", (0.01,))
    connect().create(CLAIM, "ml", claim(**{"titan-recipes/run-dir": "/outputs/b"}))
    api.fail_next("POST", "claims", 500)
    with pytest.raises(KubernetesError, match="already exists"):
        connect().create(CLAIM, "ml", claim(**{"titan-recipes/run-dir": "/outputs/a"}))


# --- the connection -------------------------------------------------------------------------------


def test_server_that_is_not_there_is_named(api: ApiServer) -> None:
    api.stop()
    with pytest.raises(KubernetesError) as caught:
        connect().find(POD, "ml")
    assert str(caught.value).startswith(f"{api.url}: Connection refused; is the cluster up")
    assert caught.value.status == 0


def test_server_that_does_not_answer_is_not_waited_for(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_client, "READ_SECONDS", 0.2)
    api.fail_next("GET", "pods", hang=True)
    with pytest.raises(KubernetesError, match="no answer in time; is the cluster up"):
        connect().find(POD, "ml")


def test_answer_that_breaks_off_is_asked_for_again_then_an_error(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_client, "BACKOFF_SECONDS", (0.01,))
    api.fail_next("GET", "pods", drop=True)
    assert connect().find(POD, "ml")[0] == []
    api.fail_next("GET", "pods", drop=True, times=2)
    with pytest.raises(KubernetesError, match="the connection broke off"):
        connect().find(POD, "ml")


def test_server_that_is_no_kubernetes_is_told_so(
    tmp_path: Path, api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(ApiServer, "url", f"http://127.0.0.1:{listener.getsockname()[1]}")
        config = api.write_kubeconfig(tmp_path / "other")
        monkeypatch.setenv("KUBECONFIG", str(config))

        def answer() -> None:
            connection, _ = listener.accept()
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(KubernetesError, match="not the answer of a Kubernetes API server"):
            connect().find(POD, "ml")
        thread.join()


def test_expired_token_asks_for_a_new_login(
    api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(api.write_kubeconfig(tmp_path / "old", "expired")))
    with pytest.raises(KubernetesError, match="does not know you: Unauthorized; log in again"):
        connect().find(POD, "ml")


def test_new_login_is_read_after_an_expired_one(
    api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = api.write_kubeconfig(tmp_path / "kube", "expired")
    monkeypatch.setenv("KUBECONFIG", str(config))
    with pytest.raises(KubernetesError, match="log in again"):
        connect().find(POD, "ml")
    api.write_kubeconfig(config)
    assert connect().find(POD, "ml")[0] == []


@pytest.mark.parametrize(
    ("text", "context", "expected"),
    [
        (None, "", "no kubeconfig there; set KUBECONFIG"),
        ("{}", "", "Invalid kube-config file"),
        ("a: [", "", "not a kubeconfig: while parsing"),
    ],
)
def test_kubeconfig_that_leads_nowhere_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, context: str, expected: str
) -> None:
    path = tmp_path / "kube"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(KubernetesError) as caught:
        connect(context)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_context_that_is_not_there_is_named(api: ApiServer) -> None:
    with pytest.raises(KubernetesError, match=r"no context 'lab' in .*; see: kubectl config get"):
        connect("lab")
    assert isinstance(connect("test"), Api)


def test_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes.client", None)
    with pytest.raises(LaunchError, match=re.escape(install_command("kubernetes"))):
        check_installed()


# --- streams --------------------------------------------------------------------------------------


def test_log_comes_with_times_from_a_second_on(api: ApiServer) -> None:
    uid = pod(api, "a")["metadata"]["uid"]
    begin = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    for number in range(4):
        api.print_line(uid, f"line {number}", begin + timedelta(seconds=number / 2))
    stream = connect().log("ml", "a", "trainer", since="2026-01-02T03:04:06Z")
    assert lines_of(stream) == [
        "2026-01-02T03:04:06.000000000Z line 2",
        "2026-01-02T03:04:06.500000000Z line 3",
    ]


def test_followed_log_gives_lines_as_they_come(api: ApiServer) -> None:
    uid = pod(api, "a")["metadata"]["uid"]
    api.print_line(uid, "one")
    stream = connect().log("ml", "a", "trainer", follow=True).lines()
    assert [line.partition(" ")[2] for line in next(stream)] == ["one"]
    api.print_line(uid, "two")
    assert [line.partition(" ")[2] for line in next(stream)] == ["two"]
    api.close_log(uid)
    assert [*stream] == []


def test_closed_stream_frees_who_waits_for_its_next_line(api: ApiServer) -> None:
    pod(api, "a")
    stream = connect().log("ml", "a", "trainer", follow=True)
    timer = threading.Timer(0.2, stream.close)
    timer.start()
    began = time.monotonic()
    assert lines_of(stream) == []
    timer.join()
    assert time.monotonic() - began < 5


def test_stream_that_says_nothing_is_broken_off(
    api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_client, "SILENCE_SECONDS", 0.2)
    pod(api, "a")
    stream = connect().log("ml", "a", "trainer", follow=True)
    with pytest.raises(KubernetesError, match="get the log of pod a: broke off: no answer"):
        lines_of(stream)


def test_log_of_a_pod_that_has_not_started_is_refused(api: ApiServer) -> None:
    api.make(
        PODS,
        {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "trainer", "image": "x"}]}},
    )
    with pytest.raises(KubernetesError, match="is waiting to start: ContainerCreating"):
        connect().log("ml", "a", "trainer")


def test_watch_tells_changes_after_its_version_and_bookmarks(api: ApiServer) -> None:
    pod(api, "before", run="a")
    _, version = connect().find(POD, "ml", labels="run=a")
    stream = connect().watch(POD, "ml", labels="run=a", version=version, seconds=1)
    pod(api, "other", run="b")
    pod(api, "after", run="a")
    told = [json.loads(line) for line in lines_of(stream)]
    assert [(one["type"], one["object"]["metadata"].get("name")) for one in told] == [
        ("BOOKMARK", None),
        ("ADDED", "after"),
    ]


def test_watch_from_a_version_that_is_forgotten_says_410(api: ApiServer) -> None:
    api.oldest = api.version
    stream = connect().watch(POD, "ml", labels="", version="1", seconds=1)
    (told,) = [json.loads(line) for line in lines_of(stream)]
    assert (told["type"], told["object"]["code"]) == ("ERROR", EXPIRED)
    api.fail_next("GET", "watch", EXPIRED, message="too old resource version")
    with pytest.raises(KubernetesError) as caught:
        connect().watch(POD, "ml", labels="", version="1", seconds=1)
    assert caught.value.status == EXPIRED
